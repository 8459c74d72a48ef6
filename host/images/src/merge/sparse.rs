// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Sparse files: the archive contains parts of a file and a map of the parts' offsets. The rest of the file is zeros.
//!
//! GNU tar has four formats of the map (GNU tar manual, "Storing Sparse Files"), and all of them are in use. The oldest
//! format puts the map into the header and the blocks after the header. The other formats are three versions of pax
//! records; the last version puts the map before the content.

use std::io::{self, Read};

use tar::{GnuExtSparseHeader, GnuSparseHeader, Header};

use super::limits::SPARSE_PARTS_MAX;

/// Maximum bytes of a number and its line break, in a map before the content. A `u64` has at most 20 digits.
const NUMBER_BYTES_MAX: usize = 21;

/// A part of the file that is in the archive.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Part {
    offset: u64,
    bytes: u64,
}

/// The map of a sparse file. Its parts are in ascending order, do not overlap, and are within the file's size.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct SparseMap {
    parts: Vec<Part>,
    pub(super) bytes: u64,
    /// Bytes of the file that are not in the archive.
    pub(super) hole_bytes: u64,
}

impl SparseMap {
    /// Creates the map from `numbers`, which alternate between offsets and lengths. Returns `None` if the numbers are
    /// invalid for a file of `bytes` bytes, of which `stored` bytes are in the archive.
    fn new(numbers: &[u64], bytes: u64, stored: u64) -> Option<Self> {
        let (pairs, []) = numbers.as_chunks::<2>() else { return None };
        if pairs.len() > SPARSE_PARTS_MAX {
            return None;
        }
        let mut parts = Vec::with_capacity(pairs.len());
        let (mut end, mut stored_sum) = (0, 0_u64);
        for &[offset, bytes] in pairs {
            if offset < end {
                return None;
            }
            end = offset.checked_add(bytes)?;
            stored_sum = stored_sum.checked_add(bytes)?;
            parts.push(Part { offset, bytes });
        }
        (end <= bytes && stored_sum == stored).then_some(())?;
        Some(Self { parts, bytes, hole_bytes: bytes.checked_sub(stored)? })
    }

    /// Reads the map of a GNU tar header. `next` reads the next block after the header.
    pub(super) fn of_header(
        header: &Header,
        stored: u64,
        mut next: impl FnMut(&mut [u8; 512]) -> io::Result<()>,
    ) -> io::Result<Option<Self>> {
        let Some(gnu) = header.as_gnu() else { return Ok(None) };
        let mut numbers = Vec::new();
        add_parts(&mut numbers, &gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = GnuExtSparseHeader::new();
            next(block.as_mut_bytes())?;
            add_parts(&mut numbers, block.sparse())?;
            if numbers.len() > 2 * SPARSE_PARTS_MAX {
                return Ok(None);
            }
            more = block.is_extended();
        }
        Ok(Self::new(&numbers, gnu.real_size()?, stored))
    }

    /// Returns the map of pax records of version `major`. In version 0, `numbers` is the map. In version 1, the map is
    /// at the start of `content`. The archive contains `stored` bytes of content.
    pub(super) fn of_records(
        major: u64,
        numbers: &[u64],
        bytes: u64,
        content: impl Read,
        stored: u64,
    ) -> io::Result<Option<Self>> {
        match major {
            0 => Ok(Self::new(numbers, bytes, stored)),
            1 => Ok(read_map(content, stored)?.and_then(|(numbers, rest)| Self::new(&numbers, bytes, rest))),
            _ => Ok(None),
        }
    }
}

fn add_parts(numbers: &mut Vec<u64>, headers: &[GnuSparseHeader]) -> io::Result<()> {
    // The first empty part ends the list.
    for part in headers.iter().take_while(|part| !part.is_empty()) {
        numbers.extend([part.offset()?, part.length()?]);
    }
    Ok(())
}

/// Reads a map of decimal numbers, one per line: first the number of pairs, then the pairs. The map is padded to a
/// whole block. Returns the pairs, and the number of stored bytes after the map.
fn read_map(content: impl Read, stored: u64) -> io::Result<Option<(Vec<u64>, u64)>> {
    let mut lines = Lines { content, left: stored, block: [0; 512], at: 512 };
    let Some(pairs) = lines.number()?.and_then(|pairs| usize::try_from(pairs).ok()) else { return Ok(None) };
    if pairs > SPARSE_PARTS_MAX {
        return Ok(None);
    }
    let mut numbers = Vec::new();
    for _ in 0..2 * pairs {
        let Some(number) = lines.number()? else { return Ok(None) };
        numbers.push(number);
    }
    Ok(Some((numbers, lines.left)))
}

/// Reads content in whole blocks, and parses a number from each line.
struct Lines<R> {
    content: R,
    left: u64,
    block: [u8; 512],
    at: usize,
}

impl<R: Read> Lines<R> {
    /// Returns the number on the next line, or `None` if the line is invalid.
    fn number(&mut self) -> io::Result<Option<u64>> {
        let mut text = Vec::with_capacity(NUMBER_BYTES_MAX);
        while text.len() < NUMBER_BYTES_MAX {
            let Some(byte) = self.byte()? else { return Ok(None) };
            if byte == b'\n' {
                return Ok(str::from_utf8(&text).ok().and_then(|text| text.parse().ok()));
            }
            text.push(byte);
        }
        Ok(None)
    }

    fn byte(&mut self) -> io::Result<Option<u8>> {
        if self.at == self.block.len() {
            let Some(left) = self.left.checked_sub(self.block.len() as u64) else { return Ok(None) };
            self.content.read_exact(&mut self.block)?;
            (self.left, self.at) = (left, 0);
        }
        self.at += 1;
        Ok(self.block.get(self.at - 1).copied())
    }
}

/// The position of a reader in a sparse file.
#[derive(Debug)]
pub(super) struct SparseCursor {
    map: SparseMap,
    next_part: usize,
    position: u64,
}

/// A run of zeros or of stored bytes in a sparse file, with its length.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Span {
    Zeros(u64),
    Stored(u64),
}

impl SparseCursor {
    pub(super) fn new(map: SparseMap) -> Self {
        Self { map, next_part: 0, position: 0 }
    }

    /// Returns the span at the position, which [`Self::advance`] moves. At the end of the file, the span is empty.
    pub(super) fn next(&mut self) -> Span {
        while let Some(part) = self.map.parts.get(self.next_part) {
            let end = part.offset.saturating_add(part.bytes);
            if self.position < part.offset {
                return Span::Zeros(part.offset - self.position);
            }
            if self.position < end {
                return Span::Stored(end - self.position);
            }
            self.next_part += 1;
        }
        Span::Zeros(self.map.bytes.saturating_sub(self.position))
    }

    pub(super) fn advance(&mut self, bytes: u64) {
        self.position = self.position.saturating_add(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(numbers: &[u64], bytes: u64, stored: u64, holes: Option<u64>) {
        assert_eq!(SparseMap::new(numbers, bytes, stored).map(|map| map.hole_bytes), holes, "{numbers:?}");
    }

    #[test]
    fn rejects_maps_that_do_not_match_the_sizes() {
        check(&[0, 10, 20, 5], 100, 15, Some(85));
        check(&[0, 10, 10, 5, 100, 0], 100, 15, Some(85));
        check(&[], 100, 0, Some(100));
        check(&[0, 10, 9, 5], 100, 15, None);
        check(&[20, 5, 0, 10], 100, 15, None);
        check(&[0, 10, 20], 100, 10, None);
        check(&[0, 10], 9, 10, None);
        check(&[0, 10], 100, 11, None);
        check(&[1, u64::MAX], u64::MAX, u64::MAX, None);
        check(&[0, u64::MAX, u64::MAX, u64::MAX], u64::MAX, u64::MAX - 1, None);
    }

    #[test]
    fn reads_a_map_before_the_content() {
        let block = |text: &str| [text.as_bytes(), &vec![0; 512 - text.len()]].concat();
        let content = [block("2\n0\n10\n20\n5\n"), vec![7; 15]].concat();
        assert_eq!(read_map(&*content, 527).unwrap(), Some((vec![0, 10, 20, 5], 15)));
        for (text, stored) in [("2\n0\n10\n", 512), ("x\n", 512), ("1\n-1\n5\n", 512), ("1\n0\n5\n", 511)] {
            assert_eq!(read_map(&*block(text), stored).unwrap(), None, "{text:?}");
        }
        assert_eq!(read_map(&*block(&"1".repeat(300)), 512).unwrap(), None);
        assert_eq!(read_map(&*block(&format!("{}\n", SPARSE_PARTS_MAX + 1)), 512).unwrap(), None);
    }

    #[test]
    fn cursor_alternates_parts_and_zeros() {
        let mut cursor = SparseCursor::new(SparseMap::new(&[2, 3, 5, 0, 9, 1], 12, 4).unwrap());
        let mut spans = Vec::new();
        loop {
            let span = cursor.next();
            let (Span::Zeros(bytes) | Span::Stored(bytes)) = span;
            if bytes == 0 {
                break;
            }
            cursor.advance(bytes);
            spans.push(span);
        }
        assert_eq!(spans, [Span::Zeros(2), Span::Stored(3), Span::Zeros(4), Span::Stored(1), Span::Zeros(2)]);
    }
}
