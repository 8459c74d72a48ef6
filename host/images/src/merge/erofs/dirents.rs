// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The content of folders. Each block is complete in itself: records of 12 bytes, then the records' names. The kernel
//! searches blocks and records by bisection, so names are in the order of their bytes, also `.` and `..`.

use std::io;

use super::format::{BLOCK_BYTES, put};

const RECORD_BYTES: usize = 12;

/// A name, and the position of its inode.
pub(super) type Name<'a> = (&'a [u8], usize);

/// The names in a folder, in ascending order.
#[derive(Debug, Default)]
pub(super) struct Names<'a> {
    all: Vec<Name<'a>>,
    bytes: u64,
}

impl<'a> Names<'a> {
    /// Creates the names of the folder at the position `at`. `all` is in ascending order and has room for two more.
    pub(super) fn new(mut all: Vec<Name<'a>>, at: usize, parent: usize) -> Self {
        for (dots, position) in [(&b"."[..], at), (b"..", parent)] {
            all.insert(all.partition_point(|(name, _)| *name < dots), (dots, position));
        }
        let mut names = Self { all, bytes: 0 };
        let (mut blocks, mut last) = (0_u64, 0);
        for block in names.blocks() {
            (blocks, last) = (blocks + 1, block_bytes(block));
        }
        names.bytes = blocks.saturating_sub(1) * BLOCK_BYTES + last as u64;
        names
    }

    /// Bytes of the folder's content. All blocks but the last are full or padded.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of names without `.` and `..`.
    pub(super) fn entries(&self) -> u64 {
        (self.all.len() as u64).saturating_sub(2)
    }

    /// Splits the names into the blocks of the folder.
    pub(super) fn blocks(&self) -> impl Iterator<Item = &[Name<'a>]> {
        let mut rest = &self.all[..];
        std::iter::from_fn(move || {
            let mut bytes = 0;
            let fit = rest.iter().take_while(|(name, _)| {
                bytes += RECORD_BYTES + name.len();
                bytes as u64 <= BLOCK_BYTES
            });
            let (block, after) = rest.split_at_checked(fit.count())?;
            rest = after;
            (!block.is_empty()).then_some(block)
        })
    }
}

fn block_bytes(block: &[Name<'_>]) -> usize {
    block.iter().map(|(name, _)| RECORD_BYTES + name.len()).sum()
}

/// Encodes a block, without padding. `inode` returns the number and the kind of the inode at a position.
pub(super) fn encode(block: &[Name<'_>], inode: impl Fn(usize) -> (u64, u8)) -> io::Result<Vec<u8>> {
    let mut encoded = vec![0; block_bytes(block)];
    let mut name_at = block.len() * RECORD_BYTES;
    for (index, (name, position)) in block.iter().enumerate() {
        let (number, kind) = inode(*position);
        let offset = u16::try_from(name_at).map_err(io::Error::other)?;
        let record = index * RECORD_BYTES;
        put(&mut encoded, record, &number.to_le_bytes())?;
        put(&mut encoded, record + 8, &offset.to_le_bytes())?;
        put(&mut encoded, record + 10, &[kind])?;
        put(&mut encoded, name_at, name)?;
        name_at += name.len();
    }
    Ok(encoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_are_in_the_order_of_bytes() {
        let names = Names::new(vec![(b"!", 5), (b".-", 6), (b"...", 7), (b"a", 8)], 1, 2);
        let found: Vec<_> =
            names.all.iter().map(|(name, position)| (str::from_utf8(name).unwrap(), *position)).collect();
        assert_eq!(found, [("!", 5), (".", 1), (".-", 6), ("..", 2), ("...", 7), ("a", 8)]);
        assert!(names.all.is_sorted());
        assert_eq!((names.entries(), names.bytes()), (4, 6 * 12 + 1 + 1 + 2 + 2 + 3 + 1));
    }

    #[test]
    fn names_are_split_where_a_block_is_full() {
        let long: Vec<_> = (0..40).map(|number| format!("{number:0255}").into_bytes()).collect();
        let names = Names::new((0..).zip(&long).map(|(at, name)| (&name[..], at)).collect(), 0, 0);
        // 15 records with names of 255 bytes use 4005 bytes, 12 and 1 more for `.`, 12 and 2 for `..`.
        let blocks: Vec<_> = names.blocks().map(|block| (block.len(), block_bytes(block))).collect();
        assert_eq!(blocks, [(17, 4032), (15, 4005), (10, 2670)]);
        assert_eq!(names.bytes(), 2 * 4096 + 2670);
        let last = names.blocks().last().unwrap();
        let encoded = encode(last, |position| (position as u64, 1)).unwrap();
        assert_eq!(encoded.len(), 2670);
        assert_eq!(encoded[..12], [30, 0, 0, 0, 0, 0, 0, 0, 120, 0, 1, 0]);
        assert_eq!(encoded[120..375], long[30][..]);
    }
}
