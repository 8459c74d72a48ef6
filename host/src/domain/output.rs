// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! A command's output, limited in size: its first and last bytes, and the range that was lost between them.

use std::collections::VecDeque;

use super::{
    guest_path::GuestPath,
    utf8::{without_cut_end, without_cut_start},
};

/// Maximum bytes kept from the start of an output. The heads and tails of a call's two outputs are at most 1 MiB in
/// total. No client can show more.
pub const OUTPUT_HEAD_BYTES_MAX: usize = 256 * 1024;

/// Maximum bytes kept from the end of an output. Programs usually report there why they failed.
pub const OUTPUT_TAIL_BYTES_MAX: usize = 256 * 1024;

/// The size in bytes above which an output loses its middle.
pub const OUTPUT_BYTES_MAX: u64 = (OUTPUT_HEAD_BYTES_MAX + OUTPUT_TAIL_BYTES_MAX) as u64;

/// Collects one output of a command in bounded memory.
#[derive(Clone, Debug)]
pub struct OutputWindow {
    head_max: usize,
    tail_max: usize,
    head: Vec<u8>,
    tail: VecDeque<u8>,
    total_bytes: u64,
}

impl Default for OutputWindow {
    fn default() -> Self {
        Self::with_limits(OUTPUT_HEAD_BYTES_MAX, OUTPUT_TAIL_BYTES_MAX)
    }
}

impl OutputWindow {
    /// Creates a window that keeps at most `head_max` bytes of the start and `tail_max` bytes of the end.
    #[must_use]
    pub fn with_limits(head_max: usize, tail_max: usize) -> Self {
        Self { head_max, tail_max, head: Vec::new(), tail: VecDeque::new(), total_bytes: 0 }
    }

    /// Appends bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.total_bytes = self.total_bytes.saturating_add(bytes.len() as u64);
        let (head, rest) = bytes.split_at(bytes.len().min(self.head_max - self.head.len()));
        self.head.extend_from_slice(head);
        let surplus = rest.len().saturating_sub(self.tail_max);
        let (_, rest) = rest.split_at(surplus);
        let overflow = (self.tail.len() + rest.len()).saturating_sub(self.tail_max);
        self.tail.drain(..overflow);
        self.tail.extend(rest);
    }

    /// Returns the kept bytes as text, and the range of bytes that was lost.
    ///
    /// Invalid UTF-8 is replaced. A character that the lost range cuts in two counts as lost.
    #[must_use]
    pub fn finish(self) -> Output {
        let Self { head, tail, total_bytes, .. } = self;
        let tail = Vec::from(tail);
        if head.len() as u64 + tail.len() as u64 == total_bytes {
            let whole = [head, tail].concat();
            return Output { text: String::from_utf8_lossy(&whole).into_owned(), lost: None, file: None };
        }
        let head = without_cut_end(&head);
        let tail = without_cut_start(&tail);
        let lost = LostRange { from: head.len() as u64, to: total_bytes - tail.len() as u64 };
        let text = format!(
            "{}\n[{} bytes left out here: {} to {} of {total_bytes}]\n{}",
            String::from_utf8_lossy(head),
            lost.to - lost.from,
            lost.from,
            lost.to,
            String::from_utf8_lossy(tail)
        );
        Output { text, lost: Some(lost), file: None }
    }
}

/// One output of a command, as a client gets it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Output {
    /// The text. An inserted line marks the position of lost bytes.
    pub text: String,
    /// The range of the lost bytes, if any.
    pub lost: Option<LostRange>,
    /// The file in the guest that contains the output, if the output was long.
    pub file: Option<OutputFile>,
}

/// A file in the guest with a long output. The agent keeps only the newest files of this kind.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OutputFile {
    pub path: GuestPath,
    /// Number of bytes in the file, which are the first bytes of the output.
    pub bytes: u64,
    /// Whether the file contains the whole output.
    pub complete: bool,
}

/// A half-open range of bytes: `from` is included, `to` is not.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LostRange {
    /// Offset of the first lost byte.
    pub from: u64,
    /// Offset of the first byte after the range.
    pub to: u64,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn collect(head_max: usize, tail_max: usize, chunks: &[&[u8]]) -> Output {
        let mut window = OutputWindow::with_limits(head_max, tail_max);
        chunks.iter().for_each(|chunk| window.push(chunk));
        window.finish()
    }

    #[test]
    fn short_output_is_kept_whole() {
        assert_eq!(collect(4, 4, &[b"12", b"345678"]), Output { text: "12345678".to_owned(), lost: None, file: None });
    }

    #[test]
    fn long_output_names_the_lost_range() {
        let output = collect(4, 4, &[b"abcdefghij", b"klm"]);
        assert_eq!(output.lost, Some(LostRange { from: 4, to: 9 }));
        assert_eq!(output.text, "abcd\n[5 bytes left out here: 4 to 9 of 13]\njklm");
    }

    #[test]
    fn character_split_between_chunks_stays_whole() {
        let euro = "€".as_bytes();
        assert_eq!(collect(8, 8, &[&euro[..1], &euro[1..2], &euro[2..]]).text, "€");
    }

    #[test]
    fn character_cut_at_the_edge_counts_as_lost() {
        let output = collect(4, 4, &["a€€xxxx€€b".as_bytes()]);
        assert_eq!(output.text, "a€\n[10 bytes left out here: 4 to 14 of 18]\n€b");
        let output = collect(3, 2, &["a€€xxxx€€b".as_bytes()]);
        assert_eq!(output.lost, Some(LostRange { from: 1, to: 17 }));
    }

    #[test]
    fn invalid_utf8_is_replaced() {
        assert_eq!(collect(8, 8, &[b"a\xffb"]).text, "a\u{fffd}b");
        assert_eq!(collect(2, 2, &[b"\xff\xff\xff\xff\xff\xff"]).lost, Some(LostRange { from: 2, to: 4 }));
    }

    proptest! {
        #[test]
        fn memory_is_limited_and_every_byte_is_accounted_for(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..20),
            head_max in 0usize..16,
            tail_max in 0usize..16,
        ) {
            let mut window = OutputWindow::with_limits(head_max, tail_max);
            for chunk in &chunks {
                window.push(chunk);
                prop_assert!(window.head.len() <= head_max && window.tail.len() <= tail_max);
            }
            let total: u64 = chunks.iter().map(|chunk| chunk.len() as u64).sum();
            let kept = (window.head.len() + window.tail.len()) as u64;
            let lost = window.finish().lost;
            match lost {
                None => prop_assert_eq!(kept, total),
                Some(LostRange { from, to }) => {
                    prop_assert!(from < to && to <= total && total - kept <= to - from);
                }
            }
        }
    }
}
