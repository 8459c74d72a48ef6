// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Decompresses layers. The first bytes of a layer say how it is compressed. Its media type does not matter, because
//! tools copy layers under wrong and foreign media types, and the image tools look at the bytes too.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

/// Size of the buffers before and after decompression.
pub(super) const STREAM_BUFFER_BYTES: usize = 256 * 1024;

/// Maximum window size of a zstd layer, as log2: 128 MiB, the default of `zstd --long`.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// A layer cannot be decompressed.
#[derive(Debug, thiserror::Error)]
pub enum CompressionFault {
    #[error("it is compressed with {format}; must be gzip, zstd or a plain tar archive")]
    Unsupported { format: &'static str },
    #[error("failed to read its first bytes")]
    Read { source: io::Error },
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Format {
    Plain,
    Gzip,
    Zstd,
    Unsupported(&'static str),
}

/// Recognizes a format. An archive begins with a file's name, which could be the first letters of a format's mark, so
/// marks of letters are compared as far as they go.
fn recognize(start: &[u8]) -> Format {
    match start {
        // 8 is the only method of gzip.
        [0x1f, 0x8b, 8, ..] => Format::Gzip,
        // A frame, or a frame to skip: 16 numbers are reserved for these.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Format::Zstd,
        // A stream of blocks, or one without any.
        [b'B', b'Z', b'h', b'1'..=b'9', b'1', b'A', b'Y', b'&', b'S', b'Y', ..]
        | [b'B', b'Z', b'h', b'1'..=b'9', 0x17, 0x72, 0x45, 0x38, 0x50, 0x90, ..] => Format::Unsupported("bzip2"),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Format::Unsupported("xz"),
        [0x04, 0x22, 0x4d, 0x18, ..] => Format::Unsupported("lz4"),
        // Streams of an unknown length: after the usual properties and the window size, the length is all ones.
        [0x5d, 0, 0, _, _, 0xff, 0xff, 0xff, 0xff, 0xff, ..] => Format::Unsupported("lzma"),
        [b'L', b'Z', b'I', b'P', 1, ..] => Format::Unsupported("lzip"),
        _ => Format::Plain,
    }
}

/// Returns a reader of the archive in a layer.
pub(super) fn decode<'a>(blob: impl Read + 'a) -> Result<Box<dyn Read + 'a>, CompressionFault> {
    let read_fault = |source| CompressionFault::Read { source };
    let mut blob = BufReader::with_capacity(STREAM_BUFFER_BYTES, blob);
    // A blob is a file, so the first read gets more than the few bytes that are compared.
    Ok(match recognize(blob.fill_buf().map_err(read_fault)?) {
        Format::Plain => Box::new(blob),
        // Tools that compress in parallel write several gzip members.
        Format::Gzip => buffered(MultiGzDecoder::new(blob)),
        Format::Zstd => buffered(unzstd(blob).map_err(read_fault)?),
        Format::Unsupported(format) => return Err(CompressionFault::Unsupported { format }),
    })
}

fn buffered<'a>(decoder: impl Read + 'a) -> Box<dyn Read + 'a> {
    Box::new(BufReader::with_capacity(STREAM_BUFFER_BYTES, decoder))
}

fn unzstd<'a>(blob: impl BufRead + 'a) -> io::Result<impl Read + 'a> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(blob)?;
    decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
    Ok(decoder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(start: &[u8], expected: Format) {
        assert_eq!(recognize(start), expected, "{:?}", start.escape_ascii());
    }

    #[test]
    fn names_of_files_are_not_compressions() {
        for name in
            [&b"BZh9/file\0"[..], b"BZh", b"LZIP/etc\0\0", b"7zXZ\0\0\0\0\0\0", b"]\0\0\0\0\0\0\0\0\0", b"PQ/\0", b""]
        {
            check(name, Format::Plain);
        }
    }

    #[test]
    fn skippable_frames_are_zstd() {
        check(b"\x50\x2a\x4d\x18\x04\0\0\0abcd", Format::Zstd);
        check(b"\x5f\x2a\x4d\x18\0\0\0\0", Format::Zstd);
        check(b"\x60\x2a\x4d\x18\0\0\0\0", Format::Plain);
    }
}
