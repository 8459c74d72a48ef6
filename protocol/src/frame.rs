// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The frame: a `u32` little-endian length, then one postcard message of that length.

use postcard::ser_flavors::Flavor;
use serde::{Deserialize, Serialize};

use crate::FRAME_BYTES_MAX;

/// Size of the length prefix of each message, in bytes.
pub const PREFIX_BYTES: usize = 4;

/// The reason why a frame or a message cannot be encoded or decoded.
#[derive(Debug, thiserror::Error)]
pub enum FrameFault {
    /// The length is above the limit.
    #[error("a frame of {bytes} bytes is above the limit of {bytes_max}")]
    TooLong {
        /// The length in the prefix. If encoding failed, a lower bound of the message's length.
        bytes: usize,
        bytes_max: usize,
    },
    /// The bytes do not decode as the expected message.
    #[error("failed to decode {bytes} bytes as {expected}")]
    Malformed {
        bytes: usize,
        /// The message type that was expected.
        expected: &'static str,
        source: postcard::Error,
    },
    /// Bytes follow the message.
    #[error("{rest} trailing bytes after {expected}")]
    Trailing {
        /// The number of trailing bytes.
        rest: usize,
        /// The message type that was read.
        expected: &'static str,
    },
    /// postcard failed to encode the message.
    #[error("failed to encode a message")]
    Encode { source: postcard::Error },
}

/// Appends `message` to `buffer` as one frame. On an error the buffer is unchanged.
///
/// # Errors
/// [`FrameFault::TooLong`] if the message exceeds [`FRAME_BYTES_MAX`], [`FrameFault::Encode`] if postcard fails.
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

/// Slices of at most this many bytes are copied byte by byte, because musl's `memcpy` is slower for short slices.
/// Numbers and most names are that short.
const SHORT_BYTES: usize = 16;

/// The buffer that postcard writes a body to, beginning at `start`. The body never exceeds [`FRAME_BYTES_MAX`].
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

/// Returns the length of the body that follows `prefix`, in bytes.
///
/// # Errors
/// [`FrameFault::TooLong`] if the length exceeds `bytes_max`. The caller must not allocate memory for such a frame.
pub fn body_bytes(prefix: [u8; PREFIX_BYTES], bytes_max: usize) -> Result<usize, FrameFault> {
    let bytes = usize::try_from(u32::from_le_bytes(prefix)).unwrap_or(usize::MAX);
    if bytes > bytes_max { Err(FrameFault::TooLong { bytes, bytes_max }) } else { Ok(bytes) }
}

/// Decodes the single message in `body`, which is the body of a frame, a packet or a file.
///
/// # Errors
/// [`FrameFault::Malformed`] if the body is not a `T`, [`FrameFault::Trailing`] if bytes follow the message.
pub fn decode<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, FrameFault> {
    let expected = core::any::type_name::<T>();
    let (message, rest) = postcard::take_from_bytes(body).map_err(|source| FrameFault::Malformed {
        bytes: body.len(),
        expected,
        source,
    })?;
    if rest.is_empty() { Ok(message) } else { Err(FrameFault::Trailing { rest: rest.len(), expected }) }
}
