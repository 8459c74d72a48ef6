// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The frame: a `u32` little-endian length, then one postcard message of that many bytes.

use postcard::ser_flavors::Flavor;
use serde::{Deserialize, Serialize};

use crate::FRAME_BYTES_MAX;

/// Bytes of the length in front of each message.
pub const PREFIX_BYTES: usize = 4;

/// A frame or a message that can't be written, or can't be read.
#[derive(Debug, thiserror::Error)]
pub enum FrameFault {
    /// The length is above the limit.
    #[error("a frame of {bytes} bytes is above the limit of {bytes_max}")]
    TooLong {
        /// The length that was announced, or that encoding came to.
        bytes: usize,
        /// The most that there may be.
        bytes_max: usize,
    },
    /// The bytes are no message of the expected type.
    #[error("{bytes} bytes are no {expected}")]
    Malformed {
        /// How many they are.
        bytes: usize,
        /// The message type that was expected.
        expected: &'static str,
        /// What postcard found.
        source: postcard::Error,
    },
    /// The bytes go on behind their message.
    #[error("{rest} bytes are left over behind a {expected}")]
    Trailing {
        /// Bytes that were left over.
        rest: usize,
        /// The message type that was read.
        expected: &'static str,
    },
    /// The message can't be encoded.
    #[error("failed to encode a message")]
    Encode {
        /// What postcard refused.
        source: postcard::Error,
    },
}

/// Appends `message` to `buffer` as one frame. On an error the buffer is as it was.
///
/// # Errors
/// [`FrameFault::TooLong`] if the message exceeds [`FRAME_BYTES_MAX`], [`FrameFault::Encode`] if postcard refuses it.
pub fn encode<T: Serialize>(message: &T, buffer: &mut Vec<u8>) -> Result<(), FrameFault> {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; PREFIX_BYTES]);
    let encoded = postcard::serialize_with_flavor(message, Body { buffer, start: start + PREFIX_BYTES });
    match (encoded, buffer.get_mut(start..start + PREFIX_BYTES)) {
        (Ok(length), Some(prefix)) => {
            prefix.copy_from_slice(&length.to_le_bytes());
            Ok(())
        }
        (Err(postcard::Error::SerializeBufferFull), _) => {
            buffer.truncate(start);
            Err(FrameFault::TooLong { bytes: FRAME_BYTES_MAX + 1, bytes_max: FRAME_BYTES_MAX })
        }
        (Err(source), _) => {
            buffer.truncate(start);
            Err(FrameFault::Encode { source })
        }
        (Ok(_), None) => Err(FrameFault::Encode { source: postcard::Error::SerializeBufferFull }),
    }
}

/// Longest slice that is copied byte by byte, in bytes. Numbers and most names are that short, and musl's `memcpy` takes
/// longer over them.
const SHORT_BYTES: usize = 16;

/// Where postcard writes a body: behind `start`, and never more than a frame may hold.
struct Body<'a> {
    buffer: &'a mut Vec<u8>,
    start: usize,
}

impl Flavor for Body<'_> {
    type Output = u32;

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.try_extend(&[byte])
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        if self.buffer.len() - self.start + bytes.len() > FRAME_BYTES_MAX {
            return Err(postcard::Error::SerializeBufferFull);
        }
        if bytes.len() <= SHORT_BYTES {
            self.buffer.reserve(bytes.len());
            for byte in bytes {
                self.buffer.push(*byte);
            }
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        Ok(())
    }

    fn finalize(self) -> postcard::Result<u32> {
        u32::try_from(self.buffer.len() - self.start).map_err(|_too_long| postcard::Error::SerializeBufferFull)
    }
}

/// The length of the body behind `prefix`, in bytes.
///
/// # Errors
/// [`FrameFault::TooLong`] if it is above `bytes_max`: nothing must be allocated for such a frame.
pub fn body_bytes(prefix: [u8; PREFIX_BYTES], bytes_max: usize) -> Result<usize, FrameFault> {
    let bytes = usize::try_from(u32::from_le_bytes(prefix)).unwrap_or(usize::MAX);
    if bytes > bytes_max { Err(FrameFault::TooLong { bytes, bytes_max }) } else { Ok(bytes) }
}

/// Reads the one message that a frame's body holds, or a packet, or a file.
///
/// # Errors
/// [`FrameFault::Malformed`] if it is no `T`, [`FrameFault::Trailing`] if anything follows it.
pub fn decode<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, FrameFault> {
    let expected = core::any::type_name::<T>();
    let (message, rest) = postcard::take_from_bytes(body).map_err(|source| FrameFault::Malformed {
        bytes: body.len(),
        expected,
        source,
    })?;
    if rest.is_empty() { Ok(message) } else { Err(FrameFault::Trailing { rest: rest.len(), expected }) }
}
