// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Repairs half characters in JSON that clients send.
//!
//! JSON may escape a character outside the basic plane as two halves, called surrogates (RFC 8259, section 7). A client
//! that cuts a text between the halves, as JavaScript's `slice` does, sends a half that is no Unicode text. serde_json
//! rejects the whole message then, so the half is replaced with U+FFFD.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, ReadBuf};

/// Size of an escape such as `\ud83d`, in bytes.
const ESCAPE_BYTES: usize = 6;

/// Maximum bytes that are read at once from the input.
const READ_BYTES: usize = 64 * 1024;

/// Replaces each half of a surrogate pair without its other half by U+FFFD, in place. Returns the number of bytes
/// before an escape that is cut off at the end.
pub(crate) fn replace_lone_surrogates(json: &mut [u8]) -> usize {
    let mut at = 0;
    while let Some(next) = json.get(at..).and_then(|rest| rest.iter().position(|byte| *byte == b'\\')) {
        at += next;
        let rest = json.get_mut(at..).unwrap_or_default();
        at += match escape(rest) {
            Escape::Whole { bytes } => bytes,
            Escape::LoneSurrogate => {
                if let Some(digits) = rest.get_mut(2..ESCAPE_BYTES) {
                    digits.copy_from_slice(b"fffd");
                }
                ESCAPE_BYTES
            }
            Escape::CutOff => return at,
        };
    }
    json.len()
}

enum Escape {
    Whole { bytes: usize },
    LoneSurrogate,
    CutOff,
}

/// Reads the escape at the start of `text`.
fn escape(text: &[u8]) -> Escape {
    match text {
        [_] | [_, b'u'] => Escape::CutOff,
        [_, b'u', digits @ ..] if digits.len() < 4 && digits.iter().all(u8::is_ascii_hexdigit) => Escape::CutOff,
        [_, b'u', digits @ ..] => match unit(digits) {
            Some(0xd800..=0xdbff) => after_first_half(digits.get(4..).unwrap_or_default()),
            Some(0xdc00..=0xdfff) => Escape::LoneSurrogate,
            Some(_) => Escape::Whole { bytes: ESCAPE_BYTES },
            None => Escape::Whole { bytes: 2 },
        },
        _ => Escape::Whole { bytes: 2 },
    }
}

fn after_first_half(rest: &[u8]) -> Escape {
    match rest {
        [b'\\', b'u', digits @ ..] if digits.len() >= 4 => match unit(digits) {
            Some(0xdc00..=0xdfff) => Escape::Whole { bytes: 2 * ESCAPE_BYTES },
            Some(_) | None => Escape::LoneSurrogate,
        },
        [] | [b'\\'] => Escape::CutOff,
        [b'\\', b'u', digits @ ..] if digits.iter().all(u8::is_ascii_hexdigit) => Escape::CutOff,
        _ => Escape::LoneSurrogate,
    }
}

/// Parses four hexadecimal digits.
fn unit(digits: &[u8]) -> Option<u16> {
    let digits = std::str::from_utf8(digits.get(..4)?).ok()?;
    let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    u16::from_str_radix(digits, 16).ok().filter(|_| is_hex)
}

/// An input whose lone surrogates are replaced.
#[derive(Debug)]
pub(super) struct Repaired<R> {
    input: R,
    /// Bytes that were read. Those before `ready` are repaired, and those before `passed` have been passed on.
    buffer: Vec<u8>,
    ready: usize,
    passed: usize,
}

impl<R> Repaired<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, buffer: Vec::new(), ready: 0, passed: 0 }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Repaired<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        output: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.passed == this.ready {
            this.buffer.drain(..this.passed);
            let kept = this.buffer.len();
            this.buffer.resize(kept + READ_BYTES, 0);
            let mut read = ReadBuf::new(this.buffer.get_mut(kept..).unwrap_or_default());
            let polled = Pin::new(&mut this.input).poll_read(context, &mut read);
            let bytes = read.filled().len();
            this.buffer.truncate(kept + bytes);
            (this.ready, this.passed) = (0, 0);
            ready!(polled)?;
            if bytes == 0 {
                // At the end, a cut escape is passed on as it is.
                this.ready = this.buffer.len();
                break;
            }
            this.ready = replace_lone_surrogates(&mut this.buffer);
        }
        let bytes = output.remaining().min(this.ready - this.passed);
        output.put_slice(this.buffer.get(this.passed..this.passed + bytes).unwrap_or_default());
        this.passed += bytes;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncReadExt as _;

    use super::*;

    fn repaired(json: &str) -> String {
        let mut bytes = json.as_bytes().to_vec();
        replace_lone_surrogates(&mut bytes);
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn replaces_only_halves_without_their_other_half() {
        for (sent, expected) in [
            (r#""cut \ud83d""#, r#""cut \ufffd""#),
            (r#""\udE00 \uD83Dx \ud83d\n \ud83d\u0041""#, r#""\ufffd \ufffdx \ufffd\n \ufffd\u0041""#),
            (r#""\ud83d\ud83d\ude00""#, r#""\ufffd\ud83d\ude00""#),
            (r#""\\ud83d \\\ud83d""#, r#""\\ud83d \\\ufffd""#),
            (r#""\u00e9 \ud83d\ude00 😀""#, r#""\u00e9 \ud83d\ude00 😀""#),
            (r#""\ud8+1 \u+123""#, r#""\ud8+1 \u+123""#),
        ] {
            assert_eq!(repaired(sent), expected);
        }
    }

    proptest! {
        #[test]
        fn every_sequence_of_units_becomes_text(
            units in prop::collection::vec(
                prop_oneof![0xd7f0_u16..0xe010, Just(0x5c), Just(0x22), Just(0x41)],
                0..12,
            ),
            piece in 1_usize..20,
        ) {
            let escapes: String = units.iter().map(|unit| format!("\\u{unit:04x}")).collect();
            let json = format!("\"{escapes}\"");
            let text: String = serde_json::from_str(&repaired(&json)).unwrap();
            prop_assert_eq!(&text, &String::from_utf16_lossy(&units));
            // Read in pieces, the result is the same.
            let pieces = Pieces(json.as_bytes().chunks(piece).map(<[u8]>::to_vec).collect());
            let mut read = String::new();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(Repaired::new(pieces).read_to_string(&mut read)).unwrap();
            prop_assert_eq!(read, repaired(&json));
        }
    }

    /// An input that returns one piece per read.
    #[derive(Debug)]
    struct Pieces(std::collections::VecDeque<Vec<u8>>);

    impl AsyncRead for Pieces {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _context: &mut Context<'_>,
            output: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if let Some(piece) = self.0.pop_front() {
                output.put_slice(&piece);
            }
            Poll::Ready(Ok(()))
        }
    }
}
