// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Sparse files: archives that hold parts of a file, and a map of where they belong. The rest of the file is zeros.
//!
//! GNU tar has four ways to write the map (its manual, "Storing Sparse Files"), and all of them occur: in the header
//! and blocks behind it, or in pax records of three versions, the last of which puts it in front of the content.

use std::io::{self, Read};

use tar::{GnuExtSparseHeader, GnuSparseHeader, Header};

use super::{
    limits::SPARSE_PARTS_MAX,
    pax::{self, PaxFault},
};

/// Bytes of a number in a map that stands in front of the content, its line break included: 20 digits hold any.
const NUMBER_BYTES_MAX: usize = 21;

/// A part that the archive holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Part {
    offset: u64,
    bytes: u64,
}

/// Where the parts of a file belong: in ascending order, none over another, none beyond the file's end.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct SparseMap {
    parts: Vec<Part>,
    /// Bytes of the file.
    pub(super) bytes: u64,
    /// Bytes of it that the archive does not hold.
    pub(super) hole_bytes: u64,
}

impl SparseMap {
    /// `numbers` are offsets and lengths in turn. Nothing if they make no sense for a file of `bytes` bytes, of which
    /// the archive holds `stored`.
    fn new(numbers: &[u64], bytes: u64, stored: u64) -> Option<Self> {
        let (pairs, []) = numbers.as_chunks::<2>() else { return None };
        if pairs.len() > SPARSE_PARTS_MAX {
            return None;
        }
        let mut parts = Vec::with_capacity(pairs.len());
        let (mut end, mut held) = (0, 0_u64);
        for &[offset, bytes] in pairs {
            if offset < end {
                return None;
            }
            end = offset.checked_add(bytes)?;
            held = held.checked_add(bytes)?;
            parts.push(Part { offset, bytes });
        }
        (end <= bytes && held == stored).then_some(())?;
        Some(Self { parts, bytes, hole_bytes: bytes.checked_sub(held)? })
    }

    /// The map of a header of GNU tar's own kind; `next` fetches a block that follows the header.
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
}

fn add_parts(numbers: &mut Vec<u64>, headers: &[GnuSparseHeader]) -> io::Result<()> {
    // The first one that is not filled in ends the list.
    for part in headers.iter().take_while(|part| !part.is_empty()) {
        numbers.extend([part.offset()?, part.length()?]);
    }
    Ok(())
}

/// What pax records say of a sparse file.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct SparseRecords {
    major: u64,
    /// The file's name: the one in `path` is made up for readers that know nothing of this.
    pub(super) name: Option<Vec<u8>>,
    bytes: Option<u64>,
    numbers: Vec<u64>,
}

impl SparseRecords {
    /// Takes a record; `key` is what follows `GNU.sparse.` in its key.
    pub(super) fn add(&mut self, key: &[u8], value: &[u8]) -> Result<(), PaxFault> {
        let is_offset_next = self.numbers.len().is_multiple_of(2);
        match key {
            b"major" => self.major = pax::number("GNU.sparse.major", value)?,
            b"name" => self.name = Some(pax::without_nul("GNU.sparse.name", value)?),
            b"size" => self.bytes = Some(pax::number("GNU.sparse.size", value)?),
            b"realsize" => self.bytes = Some(pax::number("GNU.sparse.realsize", value)?),
            b"offset" if is_offset_next => self.numbers.push(pax::number("GNU.sparse.offset", value)?),
            b"numbytes" if !is_offset_next => self.numbers.push(pax::number("GNU.sparse.numbytes", value)?),
            b"offset" | b"numbytes" => return Err(PaxFault::Number { key: "GNU.sparse.numbytes" }),
            b"map" => {
                let numbers = value.split(|byte| *byte == b',').map(|part| pax::number("GNU.sparse.map", part));
                self.numbers = numbers.collect::<Result<_, _>>()?;
            }
            // How many parts there are, and the minor version, which makes no difference.
            _ => {}
        }
        Ok(())
    }

    /// The map; one that stands in front of the content is read from there. `stored` is what is in the archive.
    pub(super) fn map(&self, content: impl Read, stored: u64) -> io::Result<Option<SparseMap>> {
        let Some(bytes) = self.bytes else { return Ok(None) };
        match self.major {
            0 => Ok(SparseMap::new(&self.numbers, bytes, stored)),
            1 => Ok(read_map(content, stored)?.and_then(|(numbers, rest)| SparseMap::new(&numbers, bytes, rest))),
            _ => Ok(None),
        }
    }
}

/// Decimal numbers, one a line, the first one says how many pairs follow; filled up to a whole block. Gives them, and
/// how much of `stored` is left behind them.
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

/// Reads whole blocks, and from them number by number.
struct Lines<R> {
    content: R,
    left: u64,
    block: [u8; 512],
    at: usize,
}

impl<R: Read> Lines<R> {
    /// Nothing where there is no number with a line break behind it.
    fn number(&mut self) -> io::Result<Option<u64>> {
        let mut text = Vec::with_capacity(NUMBER_BYTES_MAX);
        while text.len() < NUMBER_BYTES_MAX {
            let Some(byte) = self.byte()? else { return Ok(None) };
            if byte == b'\n' {
                return Ok(pax::number("GNU.sparse", &text).ok());
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

/// How far a sparse file has been read.
#[derive(Debug)]
pub(super) struct SparseCursor {
    map: SparseMap,
    next_part: usize,
    position: u64,
}

/// What comes next in a sparse file: so many bytes.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Span {
    Zeros(u64),
    Held(u64),
}

impl SparseCursor {
    pub(super) fn new(map: SparseMap) -> Self {
        Self { map, next_part: 0, position: 0 }
    }

    /// Nothing, at the end: a span of zero bytes.
    pub(super) fn next(&mut self) -> Span {
        while let Some(part) = self.map.parts.get(self.next_part) {
            let end = part.offset.saturating_add(part.bytes);
            if self.position < part.offset {
                return Span::Zeros(part.offset - self.position);
            }
            if self.position < end {
                return Span::Held(end - self.position);
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
    fn a_map_has_to_fit_the_file_and_what_is_stored_of_it() {
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
    fn a_map_in_front_of_the_content_ends_with_its_block() {
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
    fn a_file_is_its_parts_and_the_zeros_between_them() {
        let mut cursor = SparseCursor::new(SparseMap::new(&[2, 3, 5, 0, 9, 1], 12, 4).unwrap());
        let mut spans = Vec::new();
        loop {
            let span = cursor.next();
            let (Span::Zeros(bytes) | Span::Held(bytes)) = span;
            if bytes == 0 {
                break;
            }
            cursor.advance(bytes);
            spans.push(span);
        }
        assert_eq!(spans, [Span::Zeros(2), Span::Held(3), Span::Zeros(4), Span::Held(1), Span::Zeros(2)]);
    }
}
