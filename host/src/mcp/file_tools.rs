// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! `write_file`, `read_file`, `list_files`.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rmcp::model::{CallToolResult, ContentBlock, JsonObject, ResourceContents, Tool, ToolAnnotations};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Caller, Inner, arguments, environment_tools::parse_id, errors::Failure, results};
use crate::{
    domain::{guest_path::GuestPath, ports::Entry, runtime::SANDBOX_HOME},
    service::fault::{ArgumentFault, CallerFault, Fault},
};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WriteArguments {
    /// As create_environment returned it.
    environment_id: String,
    /// Absolute, or relative to /home/sandbox.
    path: String,
    /// The whole content, which may be empty; at most 10 MiB.
    content: String,
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
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ListArguments {
    /// As create_environment returned it.
    environment_id: String,
    /// Absolute, or relative to /home/sandbox, which it is if left out.
    path: Option<String>,
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
    /// Bytes.
    size: u64,
}

pub(super) fn write_file() -> Tool {
    let tool = results::tool::<WriteArguments>(
        "write_file",
        "Write file",
        "Write a text file in an environment, replacing what is there. Folders above it are made. The file gets mode \
         0644.",
        ToolAnnotations::new().read_only(false).destructive(true).idempotent(true).open_world(false),
    );
    results::with_result::<Written>(tool)
}

pub(super) fn read_file() -> Tool {
    results::tool::<ReadArguments>(
        "read_file",
        "Read file",
        "Read a file of at most 10 MiB from an environment. Text comes back as it is; a file that is not UTF-8 text \
         comes back as an embedded resource in base64.",
        ToolAnnotations::new().read_only(true).destructive(false).idempotent(true).open_world(false),
    )
}

pub(super) fn list_files() -> Tool {
    let tool = results::tool::<ListArguments>(
        "list_files",
        "List files",
        "List a folder in an environment, one level deep, hidden files included, with sizes, permissions and times.",
        ToolAnnotations::new().read_only(true).destructive(false).idempotent(true).open_world(false),
    );
    results::with_result::<Listed>(tool)
}

impl Inner {
    pub(super) async fn write_file(&self, arguments: JsonObject, caller: &Caller) -> Result<CallToolResult, Failure> {
        let arguments: WriteArguments = arguments::read("write_file", arguments)?;
        let id = parse_id(&arguments.environment_id)?;
        let path = parse_path(arguments.path)?;
        let write = self.filesystem.write(&caller.owner, id, &path, arguments.content.as_bytes());
        let bytes_written = unless_cancelled(caller, write).await?;
        results::object(&Written { bytes_written, path: path.to_string(), status: "written" })
    }

    pub(super) async fn read_file(&self, arguments: JsonObject, caller: &Caller) -> Result<CallToolResult, Failure> {
        let arguments: ReadArguments = arguments::read("read_file", arguments)?;
        let id = parse_id(&arguments.environment_id)?;
        let path = parse_path(arguments.path)?;
        let content = unless_cancelled(caller, self.filesystem.read(&caller.owner, id, &path)).await?;
        let block = match String::from_utf8(content) {
            Ok(text) => ContentBlock::text(text),
            Err(fault) => {
                let blob = ResourceContents::blob(STANDARD.encode(fault.as_bytes()), resource_uri(&path));
                ContentBlock::resource(blob.with_mime_type("application/octet-stream"))
            }
        };
        Ok(CallToolResult::success(vec![block]))
    }

    pub(super) async fn list_files(&self, arguments: JsonObject, caller: &Caller) -> Result<CallToolResult, Failure> {
        let arguments: ListArguments = arguments::read("list_files", arguments)?;
        let id = parse_id(&arguments.environment_id)?;
        let path = parse_path(arguments.path.unwrap_or_else(|| SANDBOX_HOME.to_owned()))?;
        let listing = unless_cancelled(caller, self.filesystem.list(&caller.owner, id, &path)).await?;
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

fn listed(entry: Entry) -> ListedFile {
    ListedFile {
        is_dir: results::is_folder(entry.mode),
        mode: results::mode_text(entry.mode),
        modified: results::rfc3339_unix(entry.modified_unix_s),
        name: entry.name,
        size: entry.size,
    }
}

/// A `file:` URI of the path in the guest, percent-encoded as RFC 3986 asks.
fn resource_uri(path: &GuestPath) -> String {
    let absolute = if path.as_str().starts_with('/') { path.to_string() } else { format!("{SANDBOX_HOME}/{path}") };
    let encoded = absolute.bytes().map(|byte| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    });
    std::iter::once("file://".to_owned()).chain(encoded).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resources_uri_is_percent_encoded() {
        assert_eq!(resource_uri(&parse_path("a b#ä".to_owned()).unwrap()), "file:///home/sandbox/a%20b%23%C3%A4");
        assert_eq!(resource_uri(&parse_path("/tmp/x.bin".to_owned()).unwrap()), "file:///tmp/x.bin");
    }
}
