// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! `write_file`, `read_file`, `list_files`.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rmcp::model::{CallToolResult, JsonObject, Tool, ToolAnnotations};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Caller, Inner, arguments,
    environment_tools::parse_id,
    errors::Failure,
    file_content::{self, TEXT_BYTES_MAX},
    results,
};
use crate::{
    domain::{
        guest_path::GuestPath,
        ports::{Entry, FileRange, LISTING_NAMES_BYTES_MAX, Writing},
        runtime::SANDBOX_HOME,
    },
    service::{
        fault::{ArgumentFault, CallerFault, Fault},
        filesystem::{ENTRIES_MAX, FILE_BYTES_MAX},
    },
};

/// Offsets above that are no longer exact in JSON: 2^53.
const OFFSET_MAX: u64 = 1 << 53;

/// What a listing says of a file beside its name, about.
const ENTRY_BYTES: usize = 128;

/// Permissions with set-user-id, set-group-id and the sticky bit.
const MODE_MAX: u32 = 0o7777;

/// How a file's bytes are written in JSON.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq)]
#[schemars(inline)]
enum Encoding {
    /// As the text that they are.
    #[default]
    #[serde(rename = "utf-8")]
    Utf8,
    /// In base64, for bytes that are no text.
    #[serde(rename = "base64")]
    Base64,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WriteArguments {
    /// As create_environment returned it.
    environment_id: String,
    /// Absolute, or relative to /home/sandbox.
    path: String,
    /// The whole content, which may be empty; at most 10 MiB. Write larger files in parts, with append.
    content: String,
    /// Permissions in octal, such as `0755`; if left out, an existing file keeps its own and a new one gets 0644.
    mode: Option<String>,
    /// Whether the content goes behind what the file has; if left out or false, it replaces that, at once.
    append: Option<bool>,
    /// `base64` for content that is no text; `utf-8` if left out.
    encoding: Option<Encoding>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Written {
    bytes_written: u64,
    path: String,
    status: &'static str,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ReadArguments {
    /// As create_environment returned it.
    environment_id: String,
    /// Absolute, or relative to /home/sandbox.
    path: String,
    /// The first byte to read, for a part of the file; 0 if only limit is given.
    offset: Option<f64>,
    /// The most bytes to read, for a part of the file; at most 10 MiB, and 512 KiB if only offset is given.
    limit: Option<f64>,
    /// `base64` for the bytes in base64, whatever they are; if left out or `utf-8`, text comes back as it is.
    encoding: Option<Encoding>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ListArguments {
    /// As create_environment returned it.
    environment_id: String,
    /// Absolute, or relative to /home/sandbox, which it is if left out.
    path: Option<String>,
    /// Whether folders below are listed as well; each name is then its path below the listed folder. Links to folders
    /// are not followed.
    recursive: Option<bool>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Listed {
    count: usize,
    files: Vec<ListedFile>,
    path: String,
    /// True if the folder holds more entries than one call can list; absent otherwise.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schemars(default)]
    truncated: bool,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct ListedFile {
    is_dir: bool,
    /// As `-rwxr-xr-x`.
    mode: String,
    /// RFC 3339.
    modified: String,
    name: String,
    /// The name's bytes in base64 if they are not UTF-8; name then has replacement characters. Absent otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    name_base64: Option<String>,
    /// Bytes.
    size: u64,
}

pub(super) fn write_file() -> Tool {
    let tool = results::tool::<WriteArguments>(
        "write_file",
        "Write file",
        "Write a file in an environment, replacing what is there at once, or adding to it with append. Folders above it \
         are made. Text goes in as it is, other bytes in base64.",
        ToolAnnotations::new().read_only(false).destructive(true).idempotent(false).open_world(false),
    );
    results::with_result::<Written>(tool)
}

pub(super) fn read_file() -> Tool {
    results::tool::<ReadArguments>(
        "read_file",
        "Read file",
        "Read a file from an environment. Text comes back as it is; a PNG, JPEG, GIF or WebP as a picture that you can \
         look at; anything else as an embedded resource in base64, of at most 10 MiB. Of a text above 512 KiB the \
         beginning comes back, and of any file the part that offset and limit ask for; a line behind it then says how \
         to read on.",
        ToolAnnotations::new().read_only(true).destructive(false).idempotent(true).open_world(false),
    )
}

pub(super) fn list_files() -> Tool {
    let tool = results::tool::<ListArguments>(
        "list_files",
        "List files",
        "List a folder in an environment, hidden files included, with sizes, permissions and times: one level deep, or \
         all that is below it with recursive.",
        ToolAnnotations::new().read_only(true).destructive(false).idempotent(true).open_world(false),
    );
    results::with_result::<Listed>(tool)
}

impl Inner {
    pub(super) async fn write_file(&self, arguments: JsonObject, caller: &Caller) -> Result<CallToolResult, Failure> {
        let arguments: WriteArguments = arguments::read("write_file", arguments)?;
        let id = parse_id(&arguments.environment_id)?;
        let path = parse_path(arguments.path)?;
        let content = match arguments.encoding.unwrap_or_default() {
            Encoding::Utf8 => arguments.content.into_bytes(),
            Encoding::Base64 => parse_base64(arguments.content)?,
        };
        let mode = arguments.mode.as_deref().map(parse_mode).transpose()?;
        let how = Writing { mode, append: arguments.append.unwrap_or(false) };
        let write = self.filesystem.write(&caller.owner, id, &path, &content, how);
        let bytes_written = unless_cancelled(caller, write).await?;
        results::object(&Written { bytes_written, path: path.to_string(), status: "written" })
    }

    pub(super) async fn read_file(&self, arguments: JsonObject, caller: &Caller) -> Result<CallToolResult, Failure> {
        let arguments: ReadArguments = arguments::read("read_file", arguments)?;
        let id = parse_id(&arguments.environment_id)?;
        let path = parse_path(arguments.path)?;
        let range = parse_range(arguments.offset, arguments.limit)?;
        let bytes_max = range.map_or(FILE_BYTES_MAX, |range| usize::try_from(range.limit).unwrap_or(FILE_BYTES_MAX));
        let read = async {
            let mut room = self.result_room(&caller.owner, bytes_max).await?;
            let content = self.filesystem.read(&caller.owner, id, &path, range).await?;
            room.shrink(content.bytes.len());
            caller.kept.keep(room);
            Ok(content)
        };
        let content = unless_cancelled(caller, read).await?;
        let base64 = arguments.encoding == Some(Encoding::Base64);
        Ok(file_content::reply(&path, content, range, base64))
    }

    pub(super) async fn list_files(&self, arguments: JsonObject, caller: &Caller) -> Result<CallToolResult, Failure> {
        let arguments: ListArguments = arguments::read("list_files", arguments)?;
        let id = parse_id(&arguments.environment_id)?;
        let path = parse_path(arguments.path.unwrap_or_else(|| SANDBOX_HOME.to_owned()))?;
        let list = async {
            let bytes_max = LISTING_NAMES_BYTES_MAX + ENTRIES_MAX as usize * ENTRY_BYTES;
            let mut room = self.result_room(&caller.owner, bytes_max).await?;
            let listing = self.filesystem.list(&caller.owner, id, &path, arguments.recursive.unwrap_or(false)).await?;
            room.shrink(listing.entries.iter().map(entry_bytes).sum());
            caller.kept.keep(room);
            Ok(listing)
        };
        let listing = unless_cancelled(caller, list).await?;
        let files: Vec<_> = listing.entries.into_iter().map(listed).collect();
        results::object(&Listed { count: files.len(), files, path: path.to_string(), truncated: listing.truncated })
    }
}

/// A file call that is dropped resets its stream, and the guest gives up on it.
async fn unless_cancelled<T>(caller: &Caller, call: impl Future<Output = Result<T, Fault>>) -> Result<T, Failure> {
    tokio::select! {
        outcome = call => Ok(outcome?),
        () = caller.cancelled.cancelled() => Err(CallerFault::Cancelled { executed: None }.into()),
    }
}

fn parse_path(path: String) -> Result<GuestPath, ArgumentFault> {
    GuestPath::parse(path).map_err(|source| ArgumentFault::Path { name: "path", source })
}

/// What an entry takes, in bytes.
fn entry_bytes(entry: &Entry) -> usize {
    ENTRY_BYTES + entry.raw_name.as_ref().map_or(entry.name.len(), Vec::len)
}

fn listed(entry: Entry) -> ListedFile {
    ListedFile {
        is_dir: results::is_folder(entry.mode),
        mode: results::mode_text(entry.mode),
        modified: results::rfc3339_unix(entry.modified_unix_s),
        name: entry.name,
        name_base64: entry.raw_name.map(|name| STANDARD.encode(name)),
        size: entry.size,
    }
}

/// The part of a file that is asked for; none for the whole.
fn parse_range(offset: Option<f64>, limit: Option<f64>) -> Result<Option<FileRange>, ArgumentFault> {
    if offset.is_none() && limit.is_none() {
        return Ok(None);
    }
    let limit_max = FILE_BYTES_MAX as u64;
    let offset = offset.map_or(Ok(0), |offset| whole_number("offset", offset, 0, OFFSET_MAX))?;
    let limit = limit.map_or(Ok(TEXT_BYTES_MAX as u64), |limit| whole_number("limit", limit, 1, limit_max))?;
    Ok(Some(FileRange { offset, limit }))
}

/// Numbers may come as floats, as long as they are whole.
fn whole_number(name: &'static str, value: f64, min: u64, max: u64) -> Result<u64, ArgumentFault> {
    let whole = value.to_string().parse::<u64>().ok();
    whole.filter(|whole| (min..=max).contains(whole)).ok_or(ArgumentFault::NotWhole { name, value, min, max })
}

fn parse_mode(text: &str) -> Result<u32, ArgumentFault> {
    let octal = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let mode = if octal { u32::from_str_radix(text, 8).ok() } else { None };
    mode.filter(|mode| *mode <= MODE_MAX).ok_or(ArgumentFault::Mode)
}

/// The bytes that base64 stands for; line breaks in it mean nothing.
fn parse_base64(mut text: String) -> Result<Vec<u8>, ArgumentFault> {
    text.retain(|character| !character.is_ascii_whitespace());
    STANDARD.decode(text).map_err(|fault| ArgumentFault::Base64 { reason: fault.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_octal_and_a_string() {
        assert_eq!(parse_mode("0755").unwrap(), 0o755);
        assert_eq!(parse_mode("4711").unwrap(), 0o4711);
        for wrong in ["", "0o755", "+755", "789", "10000", "rwxr-xr-x", "99999999999"] {
            assert!(matches!(parse_mode(wrong), Err(ArgumentFault::Mode)), "{wrong}");
        }
    }

    #[test]
    fn a_range_is_of_whole_numbers() {
        let range = |offset, limit| parse_range(offset, limit).unwrap();
        assert_eq!(range(None, None), None);
        assert_eq!(range(Some(5.0), None), Some(FileRange { offset: 5, limit: TEXT_BYTES_MAX as u64 }));
        assert_eq!(range(None, Some(7.0)), Some(FileRange { offset: 0, limit: 7 }));
        assert_eq!(range(Some(1e15), Some(1.0)), Some(FileRange { offset: 1_000_000_000_000_000, limit: 1 }));
        for (offset, limit) in [(0.5, 1.0), (-1.0, 1.0), (1e300, 1.0), (0.0, 0.0), (0.0, 1e9)] {
            assert!(matches!(parse_range(Some(offset), Some(limit)), Err(ArgumentFault::NotWhole { .. })));
        }
    }

    #[test]
    fn base64_may_have_line_breaks() {
        assert_eq!(parse_base64("AAEC\n/w==\n".to_owned()).unwrap(), [0, 1, 2, 255]);
        assert!(parse_base64("AAEC/".to_owned()).is_err());
    }
}
