// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The places of all inodes and of their content in the image.
//!
//! An inode, its attributes, and the end of its content that does not fill a block are stored together and within one
//! block of the metadata: the kernel requires it of that end. If they do not fit into one block, all content is in
//! blocks of its own.

use std::{collections::VecDeque, io};

use super::{
    format::{BLOCK_BYTES, INODE_BYTES, SLOT_BYTES, SUPERBLOCK_END, xattrs_bytes},
    inodes::Inode,
};

/// Number of metadata blocks that are not full and still take an inode. A few are enough to fill nearly all blocks, and
/// keep the inodes of a folder near to each other.
const OPEN_BLOCKS_MAX: usize = 16;

/// The place of an inode.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Place {
    /// Offset of the inode in the image.
    pub(super) offset: u64,
    /// Bytes at the end of the content that follow the inode and its attributes.
    pub(super) inline_bytes: u64,
    /// The first block of the rest of the content.
    pub(super) block: u32,
}

#[derive(Debug)]
pub(super) struct Plan {
    /// The places of the inodes, in the order of the inodes.
    pub(super) places: Vec<Place>,
    pub(super) metadata_blocks: u32,
    /// Number of blocks of the whole image.
    pub(super) blocks: u32,
}

pub(super) fn plan(inodes: &[Inode<'_>]) -> io::Result<Plan> {
    let mut metadata = Metadata::new();
    // The root is the first inode, and so its number fits into the superblock's 16 bits.
    let mut places: Vec<Place> = inodes.iter().map(|inode| metadata.place(inode)).collect();
    let mut next = metadata.blocks;
    // Blocks of folders come first, so that a search through all folders reads few parts of the disk.
    for of_folders in [true, false] {
        for (inode, place) in inodes.iter().zip(&mut places).filter(|(inode, _)| inode.is_folder() == of_folders) {
            place.block = block_number(next)?;
            next += (inode.content.bytes() - place.inline_bytes).div_ceil(BLOCK_BYTES);
        }
    }
    Ok(Plan { places, metadata_blocks: block_number(metadata.blocks)?, blocks: block_number(next)? })
}

fn block_number(block: u64) -> io::Result<u32> {
    u32::try_from(block).map_err(|_| io::Error::other("the merged image has more blocks than EROFS can number"))
}

/// The metadata blocks that have been planned so far.
struct Metadata {
    blocks: u64,
    /// Ends of the used parts of blocks that are not full, oldest first.
    open: VecDeque<u64>,
}

impl Metadata {
    fn new() -> Self {
        Self { blocks: 1, open: VecDeque::from([SUPERBLOCK_END]) }
    }

    fn place(&mut self, inode: &Inode<'_>) -> Place {
        let header = INODE_BYTES as u64 + xattrs_bytes(&inode.meta.xattrs);
        let mut inline_bytes = inode.content.bytes() % BLOCK_BYTES;
        if header + inline_bytes > BLOCK_BYTES {
            inline_bytes = 0;
        }
        let bytes = (header + inline_bytes).next_multiple_of(SLOT_BYTES);
        Place { offset: self.reserve(bytes), inline_bytes, block: 0 }
    }

    /// Returns the offset of a free part of a block, or of several blocks if one is too small.
    fn reserve(&mut self, bytes: u64) -> u64 {
        let end_of_block = |used: u64| used.next_multiple_of(BLOCK_BYTES);
        if let Some(used) = self.open.iter_mut().find(|used| **used + bytes <= end_of_block(**used)) {
            let offset = *used;
            *used += bytes;
            // A full block's end is also the start of the next block, and must not count as free.
            self.open.retain(|used| !used.is_multiple_of(BLOCK_BYTES));
            return offset;
        }
        let offset = self.blocks * BLOCK_BYTES;
        self.blocks += bytes.div_ceil(BLOCK_BYTES);
        if !bytes.is_multiple_of(BLOCK_BYTES) {
            if self.open.len() == OPEN_BLOCKS_MAX {
                self.open.pop_front();
            }
            self.open.push_back(offset + bytes);
        }
        offset
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservations_fill_blocks_and_never_cross_them() {
        let mut metadata = Metadata::new();
        let offsets: Vec<_> =
            [3000, 2944, 1152, 64, 64, 4096, 4096, 5000, 3192].map(|bytes| metadata.reserve(bytes)).into();
        // The first block begins with 1152 bytes that are in use.
        assert_eq!(offsets, [4096, 1152, 8192, 7096, 7160, 12288, 16384, 20480, 25480]);
        assert_eq!(metadata.blocks, 7);
        assert_eq!(metadata.open, [7224, 9344]);
    }

    #[test]
    fn number_of_open_blocks_is_limited() {
        let mut metadata = Metadata::new();
        for _ in 0..100 {
            metadata.reserve(3072);
        }
        assert_eq!(metadata.open.len(), OPEN_BLOCKS_MAX);
        assert_eq!(metadata.reserve(1024), (100 - OPEN_BLOCKS_MAX as u64 + 1) * BLOCK_BYTES + 3072);
    }
}
