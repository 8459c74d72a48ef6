// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The header of a frame.
//!
//! ```text
//!  offset  0      1       4        8
//!          │ kind │ value │ stream │ body, if the kind is data     (numbers little-endian)
//! ```

use crate::breach::Breach;

/// Length of a header in bytes.
pub(crate) const HEADER_BYTES: usize = 8;

/// Maximum length of a frame's body in bytes.
const BODY_BYTES_MAX: u32 = 64 * 1024;

/// Minimum credit of a grant in bytes. A side grants credit only after its reader has read half of a window, so grants
/// cannot flood a link.
pub(crate) const GRANT_BYTES_MIN: u32 = 2 * 1024;

const OPEN: u8 = 1;
const DATA: u8 = 2;
const CREDIT: u8 = 3;
const END: u8 = 4;
const CLOSE: u8 = 5;

/// A frame without its stream and body.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Frame {
    /// Opens the stream.
    Open,
    /// Carries a body. At least 1 byte, at most the unused credit.
    Data { bytes: u32 },
    /// Allows the receiver to send more data.
    Credit { bytes: u32 },
    /// The end of the sender's data. Credit and a close may follow.
    End,
    /// The sender is done with the stream, and sends nothing more on it. A close without an end is a reset.
    Close,
}

impl Frame {
    pub(crate) fn encode(self, stream: u32) -> [u8; HEADER_BYTES] {
        let (kind, value) = match self {
            Self::Open => (OPEN, 0),
            Self::Data { bytes } => (DATA, bytes),
            Self::Credit { bytes } => (CREDIT, bytes),
            Self::End => (END, 0),
            Self::Close => (CLOSE, 0),
        };
        let [v0, v1, v2, _] = value.to_le_bytes();
        let [s0, s1, s2, s3] = stream.to_le_bytes();
        [kind, v0, v1, v2, s0, s1, s2, s3]
    }

    /// Returns the frame and its stream.
    pub(crate) fn decode(header: [u8; HEADER_BYTES]) -> Result<(Self, u32), Breach> {
        let [kind, v0, v1, v2, s0, s1, s2, s3] = header;
        let frame = match (kind, u32::from_le_bytes([v0, v1, v2, 0])) {
            (OPEN, 0) => Self::Open,
            (DATA, bytes @ 1..=BODY_BYTES_MAX) => Self::Data { bytes },
            (CREDIT, bytes @ GRANT_BYTES_MIN..) => Self::Credit { bytes },
            (END, 0) => Self::End,
            (CLOSE, 0) => Self::Close,
            _ => return Err(Breach::Header { header }),
        };
        Ok((frame, u32::from_le_bytes([s0, s1, s2, s3])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_header_decodes_to_its_frame() {
        let frames =
            [Frame::Open, Frame::Data { bytes: 65_536 }, Frame::Credit { bytes: 2048 }, Frame::End, Frame::Close];
        for frame in frames {
            assert_eq!(Frame::decode(frame.encode(511)), Ok((frame, 511)));
        }
    }

    #[test]
    fn rejects_invalid_headers() {
        for header in [
            [0xff; HEADER_BYTES],
            [0; HEADER_BYTES],
            [6, 0, 0, 0, 0, 0, 0, 0],
            [OPEN, 1, 0, 0, 0, 0, 0, 0],
            [DATA, 0, 0, 0, 0, 0, 0, 0],
            [DATA, 1, 0, 1, 0, 0, 0, 0],
            [CREDIT, 0xff, 7, 0, 0, 0, 0, 0],
            [END, 0, 0, 1, 0, 0, 0, 0],
            [CLOSE, 1, 0, 0, 0, 0, 0, 0],
            *b"SSH-2.0-",
        ] {
            assert_eq!(Frame::decode(header), Err(Breach::Header { header }));
        }
    }
}
