// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The content of a file as a tool result: text, a picture, or base64. If more of the file is left, a line after the
//! content says how to read on.
//!
//! The result has no structured content, because some clients show only the structured content and would hide the file.
//! Programs find the offsets and the size in the result's `_meta`.

use std::ops::Range;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rmcp::model::{CallToolResult, ContentBlock, MetaObject, ResourceContents};
use serde_json::json;

use crate::domain::{
    file::{FileContent, FileRange},
    guest_path::GuestPath,
    guest_path::SANDBOX_HOME,
    utf8::without_cut_start,
};

/// The key in `_meta` that describes the part of the file in a result.
const PART_META: &str = "waggle/part";

/// Maximum number of bytes of text that a call without a limit returns: the same as for an output of a command. A model
/// cannot use more, and clients cut a longer text silently.
pub(super) const TEXT_BYTES_MAX: usize = 512 * 1024;

/// Returns the result of reading a whole file, or the part of the file in `range`.
pub(super) fn reply(
    path: &GuestPath,
    mut content: FileContent,
    range: Option<FileRange>,
    base64: bool,
) -> CallToolResult {
    let Some(range) = range.or_else(|| cut_long_text(&mut content, base64)) else {
        return CallToolResult::success(vec![whole(path, content.bytes, base64)]);
    };
    let part = Part::of(&content, range, base64);
    let bytes = content.bytes.get(part.kept.clone()).unwrap_or_default().to_vec();
    let block = if base64 { ContentBlock::text(STANDARD.encode(bytes)) } else { text_or_blob(path, bytes) };
    let mut blocks = vec![block];
    blocks.extend(part.note().map(ContentBlock::text));
    let mut meta = MetaObject::default();
    meta.0.insert(PART_META.to_owned(), part.numbers());
    CallToolResult::success(blocks).with_meta(Some(meta))
}

/// Truncates a long text, and returns the remaining range; returns `None` if the content needs no cut.
fn cut_long_text(content: &mut FileContent, base64: bool) -> Option<FileRange> {
    if base64 || content.bytes.len() <= TEXT_BYTES_MAX || std::str::from_utf8(&content.bytes).is_err() {
        return None;
    }
    content.file_size = content.bytes.len() as u64;
    content.bytes.truncate(TEXT_BYTES_MAX);
    Some(FileRange { offset: 0, limit: TEXT_BYTES_MAX as u64 })
}

fn whole(path: &GuestPath, bytes: Vec<u8>, base64: bool) -> ContentBlock {
    match picture(&bytes) {
        Some(kind) if !base64 => ContentBlock::image(STANDARD.encode(bytes), kind),
        Some(_) | None if base64 => ContentBlock::text(STANDARD.encode(bytes)),
        Some(_) | None => text_or_blob(path, bytes),
    }
}

fn text_or_blob(path: &GuestPath, bytes: Vec<u8>) -> ContentBlock {
    match String::from_utf8(bytes) {
        Ok(text) => ContentBlock::text(text),
        Err(fault) => {
            let blob = ResourceContents::blob(STANDARD.encode(fault.as_bytes()), resource_uri(path));
            ContentBlock::resource(blob.with_mime_type("application/octet-stream"))
        }
    }
}

/// Returns the media type of a picture that models can view, by its signature: PNG (its specification, section 5.2),
/// JPEG (ITU T.81, annex B), GIF (its specification, section 17) or WebP (RFC 9649, section 2.4).
fn picture(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some("image/png"),
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some("image/gif"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some("image/webp"),
        _ => None,
    }
}

/// A part of a file, cut between characters if it is text.
#[derive(Debug, Eq, PartialEq)]
struct Part {
    /// The range of the shown bytes, within the bytes that were read.
    kept: Range<usize>,
    /// Offset of the first shown byte in the file; `to` is the offset after the last one.
    from: u64,
    to: u64,
    /// `None` for files that the guest's kernel generates, such as those in `/proc`.
    file_size: Option<u64>,
    more: bool,
}

impl Part {
    fn of(content: &FileContent, range: FileRange, exact: bool) -> Self {
        let FileContent { bytes, file_size } = content;
        let end = range.offset.saturating_add(bytes.len() as u64);
        let file_size = (*file_size > 0).then_some(*file_size);
        let more = match file_size {
            Some(size) => end < size,
            None => bytes.len() as u64 == range.limit,
        };
        let all = 0..bytes.len();
        let kept = if exact { all } else { characters(bytes, range.offset > 0, more).unwrap_or(all) };
        let from = range.offset.saturating_add(kept.start as u64);
        let to = range.offset.saturating_add(kept.end as u64);
        Self { from, to, more, kept, file_size }
    }

    /// Returns a line that tells the model how to read on.
    fn note(&self) -> Option<String> {
        let Self { from, to, .. } = self;
        match self.file_size {
            Some(size) if self.more => Some(format!("[bytes {from} to {to} of {size}; read on with offset {to}]")),
            None if self.more => Some(format!("[bytes {from} to {to}; there may be more, at offset {to}]")),
            Some(size) if self.kept.is_empty() => {
                Some(format!("[no bytes at offset {from}; the file has {size} bytes]"))
            }
            Some(_) | None => None,
        }
    }

    fn numbers(&self) -> serde_json::Value {
        json!({
            "offset": self.from,
            "bytes": self.to - self.from,
            "file_size": self.file_size,
            "next_offset": self.more.then_some(self.to),
        })
    }
}

/// Returns the range of the whole characters in a part of a text; `None` if the part is not UTF-8. The part may begin
/// and end inside a character.
fn characters(bytes: &[u8], begins_inside: bool, goes_on: bool) -> Option<Range<usize>> {
    let text = if begins_inside { without_cut_start(bytes) } else { bytes };
    let start = bytes.len() - text.len();
    match std::str::from_utf8(text) {
        Ok(_) => Some(start..bytes.len()),
        // A part without a whole character is returned uncut; otherwise a reader could not move past the part.
        Err(fault) if goes_on && fault.error_len().is_none() && fault.valid_up_to() > 0 => {
            Some(start..start + fault.valid_up_to())
        }
        Err(_) => None,
    }
}

/// The `file:` URI of a path in the guest, percent-encoded as RFC 3986 requires.
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

    fn part(bytes: &[u8], file_size: u64, offset: u64, limit: u64) -> Part {
        Part::of(&FileContent { bytes: bytes.to_vec(), file_size }, FileRange { offset, limit }, false)
    }

    #[test]
    fn resource_uri_is_percent_encoded() {
        let uri = |path: &str| resource_uri(&GuestPath::parse(path).unwrap());
        assert_eq!(uri("a b#ä"), "file:///home/sandbox/a%20b%23%C3%A4");
        assert_eq!(uri("/tmp/x.bin"), "file:///tmp/x.bin");
    }

    #[test]
    fn detects_pictures_by_their_first_bytes() {
        for (bytes, kind) in [
            (b"\x89PNG\r\n\x1a\nrest".as_slice(), Some("image/png")),
            (b"\xff\xd8\xff\xe0", Some("image/jpeg")),
            (b"GIF89a", Some("image/gif")),
            (b"RIFF\x01\x02\x03\x04WEBPVP8 ", Some("image/webp")),
            (b"RIFF\x01\x02\x03\x04WAVEfmt ", None),
            (b"GIF88a", None),
            (b"<svg/>", None),
            (b"", None),
        ] {
            assert_eq!(picture(bytes), kind, "{bytes:?}");
        }
    }

    #[test]
    fn cuts_long_text_with_a_note() {
        let path = GuestPath::parse("long").unwrap();
        let read = |bytes: Vec<u8>| {
            let file_size = bytes.len() as u64;
            reply(&path, FileContent { bytes, file_size }, None, false)
        };
        let text = "é".repeat(TEXT_BYTES_MAX / 2);
        assert_eq!(read(text.clone().into_bytes()).content.len(), 1);
        let longer = read(format!("x{text}").into_bytes());
        assert_eq!(longer.content[0].as_text().unwrap().text.len(), TEXT_BYTES_MAX - 1);
        let note = "[bytes 0 to 524287 of 524289; read on with offset 524287]";
        assert_eq!(longer.content[1].as_text().unwrap().text, note);
        // Only text is cut, because a part of any other file is useless.
        assert_eq!(read(vec![0xff; TEXT_BYTES_MAX + 1]).content.len(), 1);
    }

    #[test]
    fn note_says_how_to_read_on() {
        let note = |part: Part| part.note();
        assert_eq!(note(part(b"abcd", 10, 2, 4)).unwrap(), "[bytes 2 to 6 of 10; read on with offset 6]");
        assert_eq!(note(part(b"abcd", 6, 2, 4)), None);
        assert_eq!(note(part(b"abcd", 0, 0, 4)).unwrap(), "[bytes 0 to 4; there may be more, at offset 4]");
        assert_eq!(note(part(b"abc", 0, 0, 4)), None);
        assert_eq!(note(part(b"", 6, 9, 4)).unwrap(), "[no bytes at offset 9; the file has 6 bytes]");
    }

    #[test]
    fn cuts_text_between_characters() {
        // "a€b€" has its characters at 0, 1, 4 and 5.
        let text = "a€b€".as_bytes();
        assert_eq!(part(&text[..3], 8, 0, 3).kept, 0..1);
        assert_eq!(part(&text[2..6], 8, 2, 4).kept, 2..3);
        assert_eq!((part(&text[2..6], 8, 2, 4).from, part(&text[2..6], 8, 2, 4).to), (4, 5));
        // At the end of the file, an incomplete character is invalid text; invalid text is never cut.
        assert_eq!(part(&text[..3], 3, 0, 3).kept, 0..3);
        assert_eq!(part(b"\xff\xfe\xe2\x82", 9, 0, 4).kept, 0..4);
        assert_eq!(part(&text[1..3], 8, 1, 2).kept, 0..2);
    }
}
