// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The latest output of a running command, for a client that watches the command. The buffer merges both outputs in
//! order of arrival, as text in limited memory. Output that arrives too fast is dropped and counted. The output for the
//! command's result is collected separately, by `OutputWindow`.

use super::{command::OutputStream, utf8::without_cut_start};

/// A buffer of the output that arrived since the last [`LiveOutput::take`].
#[derive(Clone, Debug)]
pub struct LiveOutput {
    bytes_max: usize,
    text: String,
    left_out_bytes: u64,
    stdout: Cut,
    stderr: Cut,
}

/// The first bytes of an incomplete character, at most three; the rest of the character has not arrived.
#[derive(Clone, Debug, Default)]
struct Cut(Vec<u8>);

impl LiveOutput {
    /// Creates an empty buffer that keeps the latest `bytes_max` bytes of text.
    #[must_use]
    pub fn with_limit(bytes_max: usize) -> Self {
        Self { bytes_max, text: String::new(), left_out_bytes: 0, stdout: Cut::default(), stderr: Cut::default() }
    }

    /// Appends bytes of one output.
    pub fn push(&mut self, stream: OutputStream, bytes: &[u8]) {
        let cut = match stream {
            OutputStream::Stdout => &mut self.stdout,
            OutputStream::Stderr => &mut self.stderr,
        };
        let surplus = bytes.len().saturating_sub(self.bytes_max);
        let (skipped, bytes) = bytes.split_at(surplus);
        if surplus > 0 {
            // These bytes fill the buffer, so everything before them is dropped.
            self.left_out_bytes += (self.text.len() + cut.0.len() + skipped.len()) as u64;
            self.text.clear();
            cut.0.clear();
        }
        let bytes = if surplus > 0 { without_cut_start(bytes) } else { bytes };
        cut.decode(bytes, &mut self.text);
        let overflow = self.text.len().saturating_sub(self.bytes_max);
        let overflow = self.text.ceil_char_boundary(overflow);
        self.text.drain(..overflow);
        self.left_out_bytes += overflow as u64;
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// Returns and removes the buffered text. If bytes were dropped, the first line states their number.
    pub fn take(&mut self) -> Option<String> {
        if self.text.is_empty() {
            return None;
        }
        let text = std::mem::take(&mut self.text);
        match std::mem::take(&mut self.left_out_bytes) {
            0 => Some(text),
            bytes => Some(format!("[{bytes} bytes left out here]\n{text}")),
        }
    }
}

impl Cut {
    /// Appends the characters that are complete with `bytes`, and keeps an incomplete last character. Replaces invalid
    /// UTF-8.
    fn decode(&mut self, bytes: &[u8], text: &mut String) {
        let joined = [std::mem::take(&mut self.0).as_slice(), bytes].concat();
        let mut chunks = joined.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            let invalid = chunk.invalid();
            let unfinished = std::str::from_utf8(invalid).is_err_and(|fault| fault.error_len().is_none());
            if chunks.peek().is_none() && unfinished {
                self.0 = invalid.to_vec();
            } else if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn output_is_taken_once_in_order_of_arrival() {
        let mut live = LiveOutput::with_limit(64);
        live.push(OutputStream::Stdout, b"one\n");
        live.push(OutputStream::Stderr, b"two\n");
        live.push(OutputStream::Stdout, b"three\n");
        assert_eq!(live.take().unwrap(), "one\ntwo\nthree\n");
        assert_eq!(live.take(), None);
    }

    #[test]
    fn split_character_arrives_whole_with_its_second_part() {
        let mut live = LiveOutput::with_limit(64);
        live.push(OutputStream::Stdout, b"a\xe2\x82");
        live.push(OutputStream::Stderr, b"\xc3");
        assert_eq!(live.take().unwrap(), "a");
        live.push(OutputStream::Stdout, b"\xacb");
        live.push(OutputStream::Stderr, b"\xa4");
        assert_eq!(live.take().unwrap(), "€bä");
    }

    #[test]
    fn invalid_utf8_is_replaced() {
        let mut live = LiveOutput::with_limit(64);
        live.push(OutputStream::Stdout, b"a\xff\xe2\x28b");
        assert_eq!(live.take().unwrap(), "a\u{fffd}\u{fffd}(b");
    }

    #[test]
    fn output_that_is_too_fast_is_dropped_and_counted() {
        let mut live = LiveOutput::with_limit(4);
        live.push(OutputStream::Stdout, b"abc");
        live.push(OutputStream::Stdout, b"de");
        assert_eq!(live.take().unwrap(), "[1 bytes left out here]\nbcde");
        live.push(OutputStream::Stdout, b"xy");
        live.push(OutputStream::Stdout, b"0123456789");
        assert_eq!(live.take().unwrap(), "[8 bytes left out here]\n6789");
    }

    proptest! {
        #[test]
        fn memory_is_limited(
            chunks in proptest::collection::vec((any::<bool>(), proptest::collection::vec(any::<u8>(), 0..40)), 0..20),
            bytes_max in 1usize..16,
        ) {
            let mut live = LiveOutput::with_limit(bytes_max);
            for (stdout, chunk) in &chunks {
                live.push(if *stdout { OutputStream::Stdout } else { OutputStream::Stderr }, chunk);
                prop_assert!(live.text.len() <= bytes_max);
                prop_assert!(live.stdout.0.len() <= 3 && live.stderr.0.len() <= 3);
            }
        }

        #[test]
        fn text_in_pieces_arrives_unchanged(
            text in "\\PC{0,60}",
            cuts in proptest::collection::vec(0usize..4, 0..200),
        ) {
            let mut live = LiveOutput::with_limit(4096);
            let (mut rest, mut seen) = (text.as_bytes(), String::new());
            for cut in cuts {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                live.push(OutputStream::Stdout, now);
                rest = later;
                seen.extend(live.take());
            }
            live.push(OutputStream::Stdout, rest);
            seen.extend(live.take());
            prop_assert_eq!(seen, text);
        }
    }
}
