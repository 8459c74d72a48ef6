// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! A command's output, limited in size: its first and last bytes, and the range that was lost between them.

use std::collections::VecDeque;

use super::{
    guest_path::GuestPath,
    utf8::{without_cut_end, without_cut_start},
};

/// Maximum bytes of one output that a caller can ask for. No model can use more, and the two outputs of a call take at
/// most 1 MiB of the server's memory.
pub const OUTPUT_BYTES_MAX: usize = 512 * 1024;

/// Default maximum bytes of one output in a result: about 16,000 tokens. Clients pass a result to their model uncut.
pub const OUTPUT_BYTES_DEFAULT: usize = 64 * 1024;

/// The first and last bytes of one output of a command, collected in bounded memory, and the output's file in the
/// guest.
///
/// The end is kept because programs usually report there why they failed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Output {
    head_max: usize,
    tail_max: usize,
    head: Vec<u8>,
    tail: VecDeque<u8>,
    total_bytes: u64,
    /// The file in the guest that contains the output, if the output was long.
    pub file: Option<OutputFile>,
}

impl Output {
    /// Creates an empty output that keeps at most `bytes_max` bytes: half of them from the start, and half from the
    /// end.
    #[must_use]
    pub fn with_limit(bytes_max: usize) -> Self {
        let head_max = bytes_max / 2;
        Self { head_max, tail_max: bytes_max - head_max, ..Self::default() }
    }

    /// Sets the file in the guest that contains the output.
    #[must_use]
    pub fn with_file(self, file: Option<OutputFile>) -> Self {
        Self { file, ..self }
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

    /// Returns the number of kept bytes.
    #[must_use]
    pub fn kept_bytes(&self) -> usize {
        self.head.len() + self.tail.len()
    }

    /// Returns at most `bytes_max` of the kept bytes as text, without the middle of a longer output.
    ///
    /// Invalid UTF-8 is replaced. A character that the lost range cuts in two counts as lost.
    #[must_use]
    pub fn excerpt(&self, bytes_max: usize) -> Excerpt {
        let kept = [&*self.head, &*Vec::from(self.tail.clone())].concat();
        let all_kept = kept.len() as u64 == self.total_bytes;
        if all_kept && kept.len() <= bytes_max {
            return Excerpt { text: String::from_utf8_lossy(&kept).into_owned(), lost: None };
        }
        // The kept bytes have a gap behind the head if bytes were lost before.
        let gap_start = if all_kept { kept.len() } else { self.head.len() };
        let gap_end = if all_kept { 0 } else { self.head.len() };
        let (head_end, tail_bytes) = (gap_start.min(bytes_max / 2), (kept.len() - gap_end).min(bytes_max.div_ceil(2)));
        let (head, _) = kept.split_at(head_end);
        let (_, tail) = kept.split_at(kept.len() - tail_bytes);
        let (head, tail) = (without_cut_end(head), without_cut_start(tail));
        let lost = LostRange { from: head.len() as u64, to: self.total_bytes - tail.len() as u64 };
        let text = format!(
            "{}\n[{} bytes left out here: {} to {} of {}]\n{}",
            String::from_utf8_lossy(head),
            lost.to - lost.from,
            lost.from,
            lost.to,
            self.total_bytes,
            String::from_utf8_lossy(tail)
        );
        Excerpt { text, lost: Some(lost) }
    }
}

/// A part of an output, as a client gets it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Excerpt {
    /// The text. An inserted line marks the position of lost bytes.
    pub text: String,
    /// The range of the lost bytes, if any.
    pub lost: Option<LostRange>,
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

    fn collect(bytes_max: usize, chunks: &[&[u8]]) -> Output {
        let mut output = Output::with_limit(bytes_max);
        chunks.iter().for_each(|chunk| output.push(chunk));
        output
    }

    fn whole(output: &Output) -> Excerpt {
        output.excerpt(usize::MAX)
    }

    #[test]
    fn short_output_is_kept_whole() {
        let output = collect(8, &[b"12", b"345678"]);
        assert_eq!(output.excerpt(8), Excerpt { text: "12345678".to_owned(), lost: None });
    }

    #[test]
    fn long_output_names_the_lost_range() {
        let output = whole(&collect(8, &[b"abcdefghij", b"klm"]));
        assert_eq!(output.lost, Some(LostRange { from: 4, to: 9 }));
        assert_eq!(output.text, "abcd\n[5 bytes left out here: 4 to 9 of 13]\njklm");
    }

    #[test]
    fn excerpt_can_be_shorter_than_the_kept_bytes() {
        for (kept_max, text) in [
            (8, "ab\n[9 bytes left out here: 2 to 11 of 13]\nlm"),
            (100, "ab\n[9 bytes left out here: 2 to 11 of 13]\nlm"),
        ] {
            assert_eq!(collect(kept_max, &[b"abcdefghijklm"]).excerpt(4).text, text);
        }
        assert_eq!(collect(100, &[b"abc"]).excerpt(1).text, "\n[2 bytes left out here: 0 to 2 of 3]\nc");
    }

    #[test]
    fn character_split_between_chunks_stays_whole() {
        let euro = "€".as_bytes();
        assert_eq!(whole(&collect(16, &[&euro[..1], &euro[1..2], &euro[2..]])).text, "€");
    }

    #[test]
    fn character_cut_at_the_edge_counts_as_lost() {
        let output = whole(&collect(8, &["a€€xxxx€€b".as_bytes()]));
        assert_eq!(output.text, "a€\n[10 bytes left out here: 4 to 14 of 18]\n€b");
        let output = whole(&collect(5, &["a€€xxxx€€b".as_bytes()]));
        assert_eq!(output.lost, Some(LostRange { from: 1, to: 17 }));
    }

    #[test]
    fn invalid_utf8_is_replaced() {
        assert_eq!(whole(&collect(16, &[b"a\xffb"])).text, "a\u{fffd}b");
        assert_eq!(whole(&collect(4, &[b"\xff\xff\xff\xff\xff\xff"])).lost, Some(LostRange { from: 2, to: 4 }));
    }

    proptest! {
        #[test]
        fn memory_is_limited_and_every_byte_is_accounted_for(
            chunks in proptest::collection::vec(proptest::collection::vec(0_u8..128, 0..40), 0..20),
            kept_max in 0usize..32,
            bytes_max in 0usize..40,
        ) {
            let mut output = Output::with_limit(kept_max);
            for chunk in &chunks {
                output.push(chunk);
                prop_assert!(output.kept_bytes() <= kept_max);
            }
            let all = chunks.concat();
            let Excerpt { text, lost } = output.excerpt(bytes_max);
            let all_text = String::from_utf8(all.clone()).unwrap();
            match lost {
                None => prop_assert_eq!(text, all_text),
                Some(LostRange { from, to }) => {
                    let (from, to) = (usize::try_from(from).unwrap(), usize::try_from(to).unwrap());
                    prop_assert!(from < to && to <= all.len() && from + all.len() - to <= bytes_max.min(kept_max));
                    prop_assert!(text.starts_with(&all_text[..from]) && text.ends_with(&all_text[to..]));
                }
            }
        }
    }
}
