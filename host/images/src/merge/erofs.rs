// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Writes the merged tree as an EROFS image: not compressed, in blocks of 4 KiB.
//!
//! ```text
//! superblock │ inodes, each with its attributes and the rest of its content │ blocks of folders │ blocks of files
//!            ╰──────────────────────── metadata blocks ─────────────────────╯
//! ```
//!
//! The order of inodes and blocks depends only on the tree, so the same layers give the same bytes. All names of a hard
//! link refer to one inode. The image has what the guest's kernel reads and no more: no compression, no deduplication,
//! no shared attributes, no checksum of the superblock.
//!
//! The format is described in the kernel's `Documentation/filesystems/erofs.rst` and `fs/erofs/erofs_fs.h`.

mod dirents;
mod format;
mod inodes;
mod plan;

use std::{
    fs::File,
    io::{self, Read as _},
    sync::Arc,
};

use self::{
    dirents::Names,
    format::{BLOCK_BYTES, SUPERBLOCK_END, Superblock, nid},
    inodes::{Content, Inode},
    plan::{Place, Plan},
};
use super::{
    control::MergeControl,
    file_range::FileRange,
    sparse_writer::SparseWriter,
    trailer::ContentDigest,
    tree::{Extent, Tree},
};

/// Number of bytes of a file that are read at once.
const COPY_BYTES: usize = 64 * 1024;

/// The size and the digest of an image.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Measure {
    /// Number of names, with the root folder.
    pub(super) entries: u64,
    pub(super) content_bytes: u64,
    pub(super) digest: ContentDigest,
}

/// Writes the tree to `out`, with the file contents from `spool`.
pub(super) fn write(
    tree: &Tree,
    spool: &Arc<File>,
    out: &File,
    uuid: [u8; 16],
    control: &MergeControl,
) -> io::Result<Measure> {
    let inodes = inodes::number(tree);
    let plan = plan::plan(&inodes)?;
    let out = SparseWriter::hashing(out.try_clone()?, control);
    let mut image = Image { inodes: &inodes, plan: &plan, spool, out, control };
    image.write_metadata(uuid)?;
    let (folders, others): (Vec<_>, Vec<_>) = image.all().partition(|(inode, _)| inode.is_folder());
    for (inode, place) in folders.into_iter().chain(others) {
        image.write_blocks(inode, *place)?;
    }
    let (_, digest) = image.out.finish()?;
    Ok(Measure { digest, ..measure(&inodes) })
}

fn measure(inodes: &[Inode<'_>]) -> Measure {
    let mut measure = Measure { entries: 1, ..Measure::default() };
    for inode in inodes {
        match &inode.content {
            Content::Folder(names) => measure.entries += names.entries(),
            Content::File(extent) => measure.content_bytes = measure.content_bytes.saturating_add(extent.bytes),
            Content::Symlink(_) | Content::Special(_) => {}
        }
    }
    measure
}

struct Image<'a> {
    inodes: &'a [Inode<'a>],
    plan: &'a Plan,
    spool: &'a Arc<File>,
    out: SparseWriter<'a>,
    control: &'a MergeControl,
}

impl<'a> Image<'a> {
    fn all(&self) -> impl Iterator<Item = (&'a Inode<'a>, &'a Place)> + use<'a> {
        self.inodes.iter().zip(&self.plan.places)
    }

    fn write_metadata(&mut self, uuid: [u8; 16]) -> io::Result<()> {
        let superblock =
            Superblock { root: self.nid_of(0), inodes: self.inodes.len() as u64, blocks: self.plan.blocks, uuid };
        self.out.pad_to(format::SUPERBLOCK_START)?;
        self.out.write_all(&superblock.encode()?)?;
        debug_assert_eq!(self.out.position(), SUPERBLOCK_END);
        let mut in_order: Vec<_> = (1..).zip(self.all()).collect();
        in_order.sort_unstable_by_key(|(_, (_, place))| place.offset);
        for (number, (inode, place)) in in_order {
            self.control.check()?;
            self.out.pad_to(place.offset)?;
            self.out.write_all(&format::inode(inode, number, *place)?)?;
            self.out.write_all(&format::xattrs(&inode.meta.xattrs)?)?;
            if place.inline_bytes > 0 {
                self.write_content(inode, inode.content.bytes() - place.inline_bytes, place.inline_bytes)?;
            }
        }
        self.out.pad_to(u64::from(self.plan.metadata_blocks) * BLOCK_BYTES)
    }

    /// Writes the part of an inode's content that is not stored behind the inode.
    fn write_blocks(&mut self, inode: &Inode<'_>, place: Place) -> io::Result<()> {
        let bytes = inode.content.bytes() - place.inline_bytes;
        if bytes == 0 {
            return Ok(());
        }
        self.control.check()?;
        debug_assert_eq!(self.out.position(), u64::from(place.block) * BLOCK_BYTES);
        self.write_content(inode, 0, bytes)?;
        self.out.pad_to(self.out.position().next_multiple_of(BLOCK_BYTES))
    }

    fn write_content(&mut self, inode: &Inode<'_>, start: u64, bytes: u64) -> io::Result<()> {
        match &inode.content {
            Content::Folder(names) => self.write_names(names, start, bytes),
            Content::File(extent) => self.copy(Extent { offset: extent.offset + start, bytes }),
            // A target is shorter than a block, so it is stored as a whole.
            Content::Symlink(target) => self.out.write_all(target),
            Content::Special(_) => Ok(()),
        }
    }

    /// Writes the blocks of a folder from byte `start`, which is the start of a block.
    fn write_names(&mut self, names: &Names<'_>, start: u64, bytes: u64) -> io::Result<()> {
        let end = self.out.position() + bytes;
        for block in names.blocks().skip(usize::try_from(start / BLOCK_BYTES).unwrap_or(usize::MAX)) {
            let position = self.out.position();
            if position >= end {
                break;
            }
            let kind_of = |inode: usize| self.inodes.get(inode).map_or(0, |inode| inode.content.dirent_kind());
            let encoded = dirents::encode(block, |inode| (self.nid_of(inode), kind_of(inode)))?;
            self.out.write_all(&encoded)?;
            self.out.pad_to(end.min(position + BLOCK_BYTES))?;
        }
        Ok(())
    }

    fn copy(&mut self, extent: Extent) -> io::Result<()> {
        let mut content = FileRange::new(Arc::clone(self.spool), extent.offset, extent.bytes);
        let mut buffer = vec![0; COPY_BYTES];
        while let left @ 1.. = content.bytes_left() {
            self.control.check()?;
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(COPY_BYTES);
            let Some(buffer) = buffer.get_mut(..wanted) else { break };
            content.read_exact(buffer)?;
            self.out.write_all(buffer)?;
        }
        Ok(())
    }

    fn nid_of(&self, inode: usize) -> u64 {
        self.plan.places.get(inode).map_or(0, |place| nid(place.offset))
    }
}
