// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The content of a file as a tool result: text, a picture, base64, or a description of a binary file. If more of the
//! file is left, a line after the text says how to read on.
//!
//! The result has no structured content, because some clients show only the structured content and would hide the file.
//! Programs find the offsets and the size in the result's `_meta`.

use std::ops::Range;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use imagesize::{ImageSize, ImageType};
use rmcp::model::{CallToolResult, ContentBlock, MetaObject};
use serde_json::json;

use super::results::{EVENT_BYTES_MAX, written_bytes};
use crate::domain::{
    file::{FileContent, FileRange},
    output::OUTPUT_BYTES_DEFAULT,
    utf8::without_cut_start,
};

/// The key in `_meta` that describes the part of the file in a result.
const PART_META: &str = "waggle/part";

/// Maximum number of bytes that one call reads. In base64 they fit into one event of the answer.
pub(super) const READ_BYTES_MAX: usize = 700_000;

/// Maximum number of bytes of text that a call without a limit returns: the same as for an output of a command, because
/// clients pass the text to their model uncut.
pub(super) const TEXT_BYTES_MAX: usize = OUTPUT_BYTES_DEFAULT;

/// Maximum width and height of a picture, in pixels. Model APIs reject larger pictures, and a rejected picture makes
/// the whole conversation fail.
const PIXELS_MAX: usize = 8000;

/// Number of first bytes in which a NUL makes a file binary, as in git's `buffer_is_binary`.
const NUL_SEARCH_BYTES: usize = 8000;

/// Number of a binary file's first bytes in its description.
const SHOWN_BYTES: usize = 16;

/// The request of a caller, as far as it affects the form of the result.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// The part of the file that was read.
    pub(super) range: FileRange,
    /// Whether the caller chose the part.
    pub(super) is_part: bool,
    /// Whether the caller set the length of the part.
    pub(super) has_limit: bool,
    pub(super) base64: bool,
}

/// Returns the result of reading a file.
pub(super) fn reply(content: &FileContent, wanted: Wanted) -> CallToolResult {
    let part = Part::of(content, wanted.range, wanted.base64);
    let (blocks, part) = if wanted.base64 {
        let base64 = ContentBlock::text(STANDARD.encode(part.bytes(content)));
        // Base64 with a note behind it would not decode.
        let note = part.note().map(ContentBlock::text);
        (std::iter::once(base64).chain(note).collect(), part)
    } else if let Some(picture) = (!wanted.is_part && !part.more).then(|| Picture::of(&content.bytes)).flatten() {
        (vec![picture.block(&content.bytes)], part)
    } else if let Some((text, part)) = text(content, wanted) {
        (vec![ContentBlock::text(text)], part)
    } else {
        (vec![ContentBlock::text(description(content, wanted, &part))], part)
    };
    let mut meta = MetaObject::default();
    meta.0.insert(PART_META.to_owned(), part.numbers());
    CallToolResult::success(blocks).with_meta(Some(meta))
}

/// Returns the text with a line that says how to read on, shortened until it fits into one event; `None` if the bytes
/// are no text.
fn text(content: &FileContent, wanted: Wanted) -> Option<(String, Part)> {
    let mut bytes_max = if wanted.has_limit { READ_BYTES_MAX } else { TEXT_BYTES_MAX };
    loop {
        let bytes = content.bytes.get(..bytes_max).unwrap_or(&content.bytes).to_vec();
        let range = FileRange { limit: wanted.range.limit.min(bytes_max as u64), ..wanted.range };
        let shown = FileContent { bytes, ..*content };
        let part = Part::of(&shown, range, false);
        let mut text = std::str::from_utf8(part.bytes(&shown)).ok()?.to_owned();
        if text.bytes().take(NUL_SEARCH_BYTES).any(|byte| byte == 0) {
            return None;
        }
        if let Some(note) = part.note() {
            let separator = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
            text.push_str(separator);
            text.push_str(&note);
        }
        if written_bytes(&text) <= EVENT_BYTES_MAX {
            return Some((text, part));
        }
        bytes_max = bytes_max.min(content.bytes.len()) * 3 / 4;
    }
}

/// Describes a file that is neither text nor a picture that can be shown.
fn description(content: &FileContent, wanted: Wanted, part: &Part) -> String {
    let bytes = &content.bytes;
    let size = match part.file_size {
        Some(size) => format!("{size} bytes"),
        None => "unknown size".to_owned(),
    };
    let start = bytes.iter().take(SHOWN_BYTES).map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
    let at =
        if wanted.range.offset > 0 { format!("at offset {}", wanted.range.offset) } else { "begins with".to_owned() };
    let kind = infer::get(bytes).filter(|_| wanted.range.offset == 0).map(|kind| format!(", {}", kind.mime_type()));
    let why = match Picture::of(bytes) {
        Some(_) if wanted.is_part => Some("; omit offset and limit to see the picture".to_owned()),
        Some(_) => Some(format!("; only a picture of at most {READ_BYTES_MAX} bytes can be shown, so make it smaller")),
        None => oversized(bytes),
    };
    format!(
        "[binary file: {size}{}, {at} {start}{}. Process it with execute, or read it with encoding base64, up to \
         {READ_BYTES_MAX} bytes in one call]",
        kind.unwrap_or_default(),
        why.unwrap_or_default()
    )
}

/// A picture that models can view.
struct Picture {
    media_type: &'static str,
}

impl Picture {
    /// Reads the type and the size of a picture; returns `None` if a model cannot view the picture.
    fn of(bytes: &[u8]) -> Option<Self> {
        let media_type = media_type(bytes)?;
        let ImageSize { width, height } = imagesize::blob_size(bytes).ok()?;
        let valid = 1..=PIXELS_MAX;
        (valid.contains(&width) && valid.contains(&height)).then_some(Self { media_type })
    }

    fn block(&self, bytes: &[u8]) -> ContentBlock {
        ContentBlock::image(STANDARD.encode(bytes), self.media_type)
    }
}

fn media_type(bytes: &[u8]) -> Option<&'static str> {
    match imagesize::image_type(bytes).ok()? {
        ImageType::Png => Some("image/png"),
        ImageType::Jpeg => Some("image/jpeg"),
        ImageType::Gif => Some("image/gif"),
        ImageType::Webp => Some("image/webp"),
        _ => None,
    }
}

/// Returns the reason why a picture cannot be shown, if its width or height is the reason.
fn oversized(bytes: &[u8]) -> Option<String> {
    media_type(bytes)?;
    let ImageSize { width, height } = imagesize::blob_size(bytes).ok()?;
    Some(format!("; a picture of {width} x {height} pixels cannot be shown, at most {PIXELS_MAX} x {PIXELS_MAX} can"))
}

/// A part of a file, cut between characters if it is text.
#[derive(Debug, Eq, PartialEq)]
struct Part {
    /// The range of the shown bytes, within the bytes that were read.
    kept: Range<usize>,
    /// Offset of the first shown byte in the file; `to` is the offset after the last shown byte.
    from: u64,
    to: u64,
    /// `None` if the size is reported as 0, as for files that the guest's kernel generates.
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

    fn bytes<'a>(&self, content: &'a FileContent) -> &'a [u8] {
        content.bytes.get(self.kept.clone()).unwrap_or_default()
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A PNG with a header for this size, and nothing else.
    fn png(width: u32, height: u32) -> Vec<u8> {
        let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
        png.extend([width.to_be_bytes(), height.to_be_bytes()].concat());
        png
    }

    fn part(bytes: &[u8], file_size: u64, offset: u64, limit: u64) -> Part {
        Part::of(&FileContent { bytes: bytes.to_vec(), file_size }, FileRange { offset, limit }, false)
    }

    fn read(bytes: &[u8], wanted: Wanted) -> Vec<ContentBlock> {
        let (from, limit) =
            (usize::try_from(wanted.range.offset).unwrap(), usize::try_from(wanted.range.limit).unwrap());
        let rest = bytes.get(from..).unwrap_or_default();
        let content = FileContent { bytes: rest[..rest.len().min(limit)].to_vec(), file_size: bytes.len() as u64 };
        reply(&content, wanted).content
    }

    const WHOLE: Wanted = Wanted {
        range: FileRange { offset: 0, limit: READ_BYTES_MAX as u64 },
        is_part: false,
        has_limit: false,
        base64: false,
    };

    fn text_of(blocks: &[ContentBlock]) -> &str {
        assert_eq!(blocks.len(), 1, "some clients show only the first block");
        &blocks[0].as_text().unwrap().text
    }

    #[test]
    fn pictures_are_shown_if_they_are_whole_and_not_too_large() {
        let shown = |bytes: &[u8]| read(bytes, WHOLE)[0].as_image().map(|image| image.mime_type.clone());
        assert_eq!(shown(&png(8000, 1)).unwrap(), "image/png");
        assert_eq!(shown(b"GIF89a\x01\0\x01\0\0\0\0;").unwrap(), "image/gif");
        let padded = [png(1, 1), vec![0; READ_BYTES_MAX]].concat();
        for not_shown in
            [&png(8001, 1)[..], &png(0, 1), b"\x89PNG\r\n\x1a\nrest", b"RIFF\x01\x02\x03\x04WAVEfmt \xff", &padded]
        {
            assert_eq!(shown(not_shown), None);
        }
        assert!(text_of(&read(&png(8001, 20), WHOLE)).contains("8001 x 20 pixels"));
        assert!(text_of(&read(&padded, WHOLE)).contains("so make it smaller"));
        let part = Wanted { is_part: true, ..WHOLE };
        assert!(read(&png(1, 1), part)[0].as_image().is_none());
    }

    #[test]
    fn binary_file_is_described_and_its_bytes_come_in_base64() {
        let elf = [b"\x7fELF\x02\x01\x01\0".as_slice(), &[0xff; 56]].concat();
        let text = text_of(&read(&elf, WHOLE)).to_owned();
        assert_eq!(
            text,
            "[binary file: 64 bytes, application/x-executable, begins with 7f 45 4c 46 02 01 01 00 ff ff ff ff ff ff \
             ff ff. Process it with execute, or read it with encoding base64, up to 700000 bytes in one call]"
        );
        let base64 = Wanted { base64: true, ..WHOLE };
        assert_eq!(text_of(&read(&elf, base64)), STANDARD.encode(&elf));
        let large = vec![0xff; READ_BYTES_MAX + 1];
        let blocks = read(&large, base64);
        let encoded = &blocks[0].as_text().unwrap().text;
        assert_eq!(STANDARD.decode(encoded).unwrap().len(), READ_BYTES_MAX);
        assert!(written_bytes(&blocks) < EVENT_BYTES_MAX);
        assert_eq!(blocks[1].as_text().unwrap().text, "[bytes 0 to 700000 of 700001; read on with offset 700000]");
    }

    #[test]
    fn cuts_long_text_with_a_note_in_the_same_block() {
        let text = "é".repeat(TEXT_BYTES_MAX / 2);
        assert_eq!(text_of(&read(text.as_bytes(), WHOLE)), text);
        let longer = format!("x{text}");
        let shown = read(longer.as_bytes(), WHOLE);
        let shown = text_of(&shown);
        let note = "\n[bytes 0 to 65535 of 65537; read on with offset 65535]";
        assert!(shown.ends_with(note) && longer.starts_with(shown.strip_suffix(note).unwrap()));
        let more =
            Wanted { range: FileRange { offset: 0, limit: 70_000 }, is_part: true, has_limit: true, base64: false };
        assert_eq!(text_of(&read(longer.as_bytes(), more)), longer);
    }

    #[test]
    fn text_that_must_be_escaped_is_cut_to_one_event_and_can_be_read_on() {
        let text = "\"\n\u{1}".repeat(200_000);
        let (mut all, mut offset) = (String::new(), Some(0));
        while let Some(from) = offset {
            let rest = &text.as_bytes()[from..];
            let content =
                FileContent { bytes: rest[..rest.len().min(READ_BYTES_MAX)].to_vec(), file_size: text.len() as u64 };
            let range = FileRange { offset: from as u64, limit: READ_BYTES_MAX as u64 };
            let result = reply(&content, Wanted { range, is_part: true, has_limit: true, base64: false });
            assert!(written_bytes(&result) < EVENT_BYTES_MAX + 1000);
            let meta = &result.meta.unwrap().0[PART_META];
            let bytes = usize::try_from(meta["bytes"].as_u64().unwrap()).unwrap();
            all.push_str(&text_of(&result.content)[..bytes]);
            offset = meta["next_offset"].as_u64().map(|next| usize::try_from(next).unwrap());
        }
        assert_eq!(all, text);
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
