// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The tools `write_file`, `read_file` and `list_files`. Cancelling a call drops the call's future. The drop resets the
//! call's stream to the guest, and the guest then stops the operation.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::FutureExt as _;
use rmcp::model::ToolAnnotations;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    arguments::{parse_id, parse_path},
    call_context::CallContext,
    failure::Outcome,
    file_content::{self, READ_BYTES_MAX, Wanted},
    formats, results,
    resumed_note::ResumedNote,
    services::Services,
    tool::ServedTool,
};
use crate::{
    domain::{
        file::{Entry, FileRange, Writing},
        guest_path::SANDBOX_HOME,
    },
    service::fault::ArgumentFault,
};

/// Maximum offset: 2^53. JSON numbers above 2^53 are not exact.
const OFFSET_MAX: u64 = 1 << 53;

/// Memory in bytes of an entry in a listing, without the entry's name: an object with six or seven values.
const ENTRY_BYTES: usize = 1280;

/// Size of an entry in JSON in bytes, without the entry's name.
const ENTRY_JSON_BYTES: usize = 160;

/// Maximum mode: permissions with set-user-id, set-group-id and the sticky bit.
const MODE_MAX: u32 = 0o7777;

/// The encoding of a file's bytes in JSON.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq)]
#[schemars(inline)]
enum Encoding {
    /// Plain text.
    #[default]
    #[serde(rename = "utf-8")]
    Utf8,
    /// Base64, for bytes that are not UTF-8 text.
    #[serde(rename = "base64")]
    Base64,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct WriteArguments {
    /// The environment's id, as returned by create_environment.
    environment_id: String,
    /// The path of the file, absolute or relative to /home/sandbox.
    path: String,
    /// The content, at most 10 MiB; may be empty. Write larger files in parts, with append.
    content: String,
    /// Permissions in octal, such as `0755`; by default an existing file keeps its permissions, and a new file gets
    /// 0644.
    mode: Option<String>,
    /// True to add the content to the end of the file; by default the content replaces the file in one step.
    append: Option<bool>,
    /// `base64` for content that is not text; by default `utf-8`.
    encoding: Option<Encoding>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Written {
    bytes_written: u64,
    path: String,
    #[serde(flatten)]
    resumed: ResumedNote,
    status: &'static str,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ReadArguments {
    /// The environment's id, as returned by create_environment.
    environment_id: String,
    /// The path of the file, absolute or relative to /home/sandbox.
    path: String,
    /// The offset of the first byte to read, to read a part of the file; by default 0.
    offset: Option<f64>,
    /// The maximum number of bytes to read, at most 700,000; by default 65,536 for text.
    limit: Option<f64>,
    /// `base64` to get any file in base64; by default `utf-8`, which returns text as plain text.
    encoding: Option<Encoding>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ListArguments {
    /// The environment's id, as returned by create_environment.
    environment_id: String,
    /// The path of the folder, absolute or relative to /home/sandbox; by default /home/sandbox.
    path: Option<String>,
    /// True to list the subfolders as well; each name is then a path relative to the listed folder. Links to folders
    /// are not followed.
    recursive: Option<bool>,
    /// `next` of the previous page, to get the next one; by default the listing begins with the first entry.
    after: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Listed<'a> {
    count: usize,
    files: &'a [ListedFile],
    /// The argument `after` for the next page; absent if no entries follow.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<&'a str>,
    path: String,
    #[serde(flatten)]
    resumed: ResumedNote,
    /// The number of all entries in the folder, with those of its subfolders if recursive.
    total: u64,
    /// True if there are more entries than total, in folders that were not read; absent otherwise.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schemars(default)]
    total_is_minimum: bool,
    /// True if entries follow, or if no call with this path lists those more than 32 folders deep; absent otherwise.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schemars(default)]
    truncated: bool,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct ListedFile {
    is_dir: bool,
    /// Type and permissions, such as `-rwxr-xr-x`.
    mode: String,
    /// The time of the last change, as RFC 3339.
    modified: String,
    /// If the name is not UTF-8, with invalid bytes as `\xE9` and backslashes as `\x5C`; file tools take this form.
    name: String,
    /// The name in base64 if the name is not UTF-8; absent otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    name_base64: Option<String>,
    /// The size in bytes.
    size: u64,
}

pub(super) fn write_file() -> ServedTool {
    ServedTool::new(
        "write_file",
        "Write file",
        "Write a file in an environment: replace the file in one step, or add to its end with append. Missing parent \
         folders are created. Pass text as plain text, and other content in base64.",
        ToolAnnotations::new().read_only(false).destructive(true).idempotent(false).open_world(false),
        |services, arguments, context| services.write_file(arguments, context).boxed(),
    )
    .with_result::<Written>()
}

pub(super) fn read_file() -> ServedTool {
    ServedTool::new(
        "read_file",
        "Read file",
        "Read a file from an environment. Text is returned as plain text; a PNG, JPEG, GIF or WebP of at most 700,000 \
         bytes as a picture that you can look at; any other file as a short description. Of a text above 64 KiB only \
         the beginning is returned, unless limit is larger. offset and limit select a part of any file; a line after a \
         part says how to read on. Encoding base64 returns the bytes of any file, up to 700,000 in one call.",
        ToolAnnotations::new().read_only(true).destructive(false).idempotent(true).open_world(false),
        |services, arguments, context| services.read_file(arguments, context).boxed(),
    )
    .with_large_results()
}

pub(super) fn list_files() -> ServedTool {
    ServedTool::new(
        "list_files",
        "List files",
        "List a folder in an environment, hidden files included, with sizes, permissions and times, sorted by name. \
         With recursive, list its subfolders as well. If more entries follow, the result has next; pass it as after \
         to get the next page.",
        ToolAnnotations::new().read_only(true).destructive(false).idempotent(true).open_world(false),
        |services, arguments, context| services.list_files(arguments, context).boxed(),
    )
    .with_result::<Listed<'static>>()
    .with_large_results()
}

impl Services {
    async fn write_file(&self, arguments: WriteArguments, context: &CallContext) -> Outcome {
        let id = parse_id(&arguments.environment_id)?;
        let path = parse_path("path", arguments.path)?;
        let content = match arguments.encoding.unwrap_or_default() {
            Encoding::Utf8 => arguments.content.into_bytes(),
            Encoding::Base64 => parse_base64(arguments.content)?,
        };
        let mode = arguments.mode.as_deref().map(parse_mode).transpose()?;
        let how = Writing { mode, append: arguments.append.unwrap_or(false) };
        let write = self.filesystem.write(&context.owner, id, &path, &content, how);
        let bytes_written = context.unless_cancelled(write).await?;
        let resumed = self.resumed_note(&context.owner, id);
        results::object(&Written { bytes_written, path: path.to_string(), resumed, status: "written" })
    }

    async fn read_file(&self, arguments: ReadArguments, context: &CallContext) -> Outcome {
        let id = parse_id(&arguments.environment_id)?;
        let path = parse_path("path", arguments.path)?;
        let wanted = parse_wanted(arguments.offset, arguments.limit, arguments.encoding)?;
        let read = async {
            // Memory is reserved only now, so that a guest that does not answer keeps none from other calls.
            let content = self.filesystem.read(&context.owner, id, &path, wanted.range).await?;
            let reservation = self.reserve_result(&context.owner, results::bytes_max(content.bytes.len())).await?;
            Ok((content, reservation))
        };
        let (content, mut reservation) = context.unless_cancelled(read).await?;
        let result = file_content::reply(&content, wanted);
        reservation.shrink(results::result_bytes(&result));
        context.memory.hold_result(reservation);
        Ok(result)
    }

    async fn list_files(&self, arguments: ListArguments, context: &CallContext) -> Outcome {
        let id = parse_id(&arguments.environment_id)?;
        let path = parse_path("path", arguments.path.unwrap_or_else(|| SANDBOX_HOME.to_owned()))?;
        let list = async {
            let (after, recursive) = (arguments.after.unwrap_or_default(), arguments.recursive.unwrap_or(false));
            // As for `read_file`, memory is reserved only now.
            let listing = self.filesystem.list(&context.owner, id, &path, after, recursive).await?;
            let reservation = self.reserve_result(&context.owner, listing_bytes(&listing.entries)).await?;
            Ok((listing, reservation))
        };
        let (listing, mut reservation) = context.unless_cancelled(list).await?;
        let files: Vec<_> = listing.entries.into_iter().map(listed).collect();
        let next = |count: usize| {
            let last = if count < files.len() { files.get(..count).and_then(<[ListedFile]>::last) } else { None };
            last.map(|file| file.name.as_str()).or(listing.next.as_deref())
        };
        let resumed = self.resumed_note(&context.owner, id);
        let result = results::list(files.len(), |count| Listed {
            count,
            files: files.get(..count).unwrap_or_default(),
            next: next(count),
            path: path.to_string(),
            resumed,
            total: listing.total,
            total_is_minimum: listing.total_is_minimum,
            truncated: listing.too_deep || next(count).is_some(),
        })?;
        reservation.shrink(results::result_bytes(&result));
        context.memory.hold_result(reservation);
        Ok(result)
    }
}

/// Returns the maximum memory of a listing and its written form, in bytes.
fn listing_bytes(entries: &[Entry]) -> usize {
    // A name that is not UTF-8 is listed in base64 as well.
    let names = entries.iter().map(|entry| entry.name.len() + entry.raw_name.as_ref().map_or(0, |name| 2 * name.len()));
    let (names, count) = (names.sum::<usize>(), entries.len());
    names + count * ENTRY_BYTES + results::bytes_max(names + count * ENTRY_JSON_BYTES)
}

fn listed(entry: Entry) -> ListedFile {
    ListedFile {
        is_dir: formats::is_folder(entry.mode),
        mode: formats::mode_text(entry.mode),
        modified: formats::rfc3339_unix(entry.modified_unix_s),
        name: entry.name,
        name_base64: entry.raw_name.map(|name| STANDARD.encode(name)),
        size: entry.size,
    }
}

/// Parses what a caller wants of a file. A longer part than a call can return is cut; the result says how to read on.
fn parse_wanted(offset: Option<f64>, limit: Option<f64>, encoding: Option<Encoding>) -> Result<Wanted, ArgumentFault> {
    let offset = offset.map(|offset| ArgumentFault::whole_number("offset", offset, 0..=OFFSET_MAX)).transpose()?;
    let limit = limit.map(|limit| ArgumentFault::whole_number("limit", limit, 1..=OFFSET_MAX)).transpose()?;
    let range = FileRange { offset: offset.unwrap_or(0), limit: limit.unwrap_or(u64::MAX).min(READ_BYTES_MAX as u64) };
    let is_part = offset.is_some() || limit.is_some();
    Ok(Wanted { range, is_part, has_limit: limit.is_some(), base64: encoding == Some(Encoding::Base64) })
}

fn parse_mode(text: &str) -> Result<u32, ArgumentFault> {
    let octal = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let mode = if octal { u32::from_str_radix(text, 8).ok() } else { None };
    mode.filter(|mode| *mode <= MODE_MAX).ok_or(ArgumentFault::Mode)
}

/// Decodes base64, ignoring white space.
fn parse_base64(mut text: String) -> Result<Vec<u8>, ArgumentFault> {
    text.retain(|character| !character.is_ascii_whitespace());
    STANDARD.decode(text).map_err(|fault| ArgumentFault::Base64 { reason: fault.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mode_must_be_octal_digits() {
        assert_eq!(parse_mode("0755").unwrap(), 0o755);
        assert_eq!(parse_mode("4711").unwrap(), 0o4711);
        for wrong in ["", "0o755", "+755", "789", "10000", "rwxr-xr-x", "99999999999"] {
            assert!(matches!(parse_mode(wrong), Err(ArgumentFault::Mode)), "{wrong}");
        }
    }

    #[test]
    fn range_must_be_integers() {
        let range = |offset, limit| parse_wanted(offset, limit, None).unwrap().range;
        let limit_max = READ_BYTES_MAX as u64;
        assert_eq!(range(None, None), FileRange { offset: 0, limit: limit_max });
        assert_eq!(range(Some(5.0), None), FileRange { offset: 5, limit: limit_max });
        assert_eq!(range(None, Some(7.0)), FileRange { offset: 0, limit: 7 });
        assert_eq!(range(Some(1e15), Some(1e9)), FileRange { offset: 1_000_000_000_000_000, limit: limit_max });
        for (offset, limit) in [(0.5, 1.0), (-1.0, 1.0), (1e300, 1.0), (0.0, 0.0), (0.0, 1e300)] {
            assert!(matches!(parse_wanted(Some(offset), Some(limit), None), Err(ArgumentFault::NotWhole { .. })));
        }
    }

    #[test]
    fn memory_of_a_listing_is_reserved_by_its_entries() {
        let entry = |name: &str, raw_name| Entry {
            name: name.to_owned(),
            raw_name,
            mode: 0o100_644,
            size: 1 << 40,
            modified_unix_s: 0,
        };
        for (name, raw_name) in [("a", None), ("\u{1}\u{1}\u{1}", None), ("\\xE9", Some(vec![0xe9]))] {
            let entries: Vec<_> = (0..100).map(|_| entry(name, raw_name.clone())).collect();
            let reserved = listing_bytes(&entries);
            let files: Vec<_> = entries.into_iter().map(listed).collect();
            let values = crate::mcp::json_size::value_bytes(&serde_json::to_value(&files).unwrap());
            let result = results::object(&files).unwrap();
            assert!(reserved > results::result_bytes(&result), "{name:?}");
            assert!(values < 100 * (ENTRY_BYTES + 8 * name.len()), "{name:?}: {values}");
        }
        // Small listings fit the caller's own reserve, and many of the largest fit the budget.
        assert!(listing_bytes(&vec![entry("src", None); 100]) < results::RESULT_BYTES_MAX / 2);
        assert!(listing_bytes(&vec![entry(&"n".repeat(100), None); 5000]) < 9 * 1024 * 1024);
    }

    #[test]
    fn base64_may_contain_line_breaks() {
        assert_eq!(parse_base64("AAEC\n/w==\n".to_owned()).unwrap(), [0, 1, 2, 255]);
        assert!(matches!(parse_base64("AAEC/".to_owned()), Err(ArgumentFault::Base64 { .. })));
    }
}
