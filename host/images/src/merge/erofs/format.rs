// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The encoding of EROFS's structures on the disk, in little-endian order. The names in comments are those of the
//! kernel's `fs/erofs/erofs_fs.h`.

use std::io;

use super::{
    super::xattrs::Xattrs,
    inodes::{Content, Inode, Special},
    plan::Place,
};

pub(super) const BLOCK_BYTES: u64 = 4096;
/// log2 of the bytes of a block.
const BLOCK_BITS: u8 = 12;

/// The unit of an inode's number: the number is the inode's offset in the image, in slots.
pub(super) const SLOT_BYTES: u64 = 32;
/// Bytes of an extended inode. A compact one has no time, and only 16 bits for owners.
pub(super) const INODE_BYTES: usize = 64;

pub(super) const SUPERBLOCK_START: u64 = 1024;
const SUPERBLOCK_BYTES: usize = 128;
pub(super) const SUPERBLOCK_END: u64 = SUPERBLOCK_START + SUPERBLOCK_BYTES as u64;
const MAGIC: u32 = 0xe0f5_e1e2;

/// Bytes of an inode's attributes before the first one.
const XATTRS_HEADER_BYTES: usize = 12;
/// Bytes of an attribute before its name.
const XATTR_HEADER_BYTES: usize = 4;
/// Attributes are padded to this length.
const XATTR_UNIT_BYTES: usize = 4;
/// The namespaces of attributes, and their numbers.
const XATTR_NAMESPACES: [(&str, u8); 3] = [("user.", 1), ("trusted.", 4), ("security.", 6)];

/// `i_format` of an extended inode with all content in blocks (`EROFS_INODE_FLAT_PLAIN`).
const FORMAT_PLAIN: u16 = 1;
/// `i_format` of an extended inode with the rest of the content after the inode (`EROFS_INODE_FLAT_INLINE`).
const FORMAT_INLINE: u16 = 1 | 2 << 1;

pub(super) struct Superblock {
    pub(super) root: u64,
    pub(super) inodes: u64,
    pub(super) blocks: u32,
    pub(super) uuid: [u8; 16],
}

impl Superblock {
    pub(super) fn encode(&self) -> io::Result<[u8; SUPERBLOCK_BYTES]> {
        let root = u16::try_from(self.root).map_err(io::Error::other)?;
        let mut encoded = [0; SUPERBLOCK_BYTES];
        put(&mut encoded, 0, &MAGIC.to_le_bytes())?;
        put(&mut encoded, 12, &[BLOCK_BITS])?;
        put(&mut encoded, 14, &root.to_le_bytes())?;
        put(&mut encoded, 16, &self.inodes.to_le_bytes())?;
        put(&mut encoded, 36, &self.blocks.to_le_bytes())?;
        // `meta_blkaddr` is 0, so inodes are numbered from the start of the image.
        put(&mut encoded, 48, &self.uuid)?;
        Ok(encoded)
    }
}

/// Returns the number of the inode at an offset of the image.
pub(super) fn nid(offset: u64) -> u64 {
    offset / SLOT_BYTES
}

/// Encodes an inode. `number` is the inode's place in the order of the image, from 1.
pub(super) fn inode(inode: &Inode<'_>, number: u32, place: Place) -> io::Result<[u8; INODE_BYTES]> {
    let Inode { meta, links, content } = inode;
    let (kind_bits, data) = match content {
        Content::Folder(_) => (kind::FOLDER, place.block),
        Content::File(_) => (kind::FILE, place.block),
        Content::Symlink(_) => (kind::SYMLINK, place.block),
        Content::Special(Special::CharDevice(major, minor)) => (kind::CHAR_DEVICE, device(*major, *minor)),
        Content::Special(Special::BlockDevice(major, minor)) => (kind::BLOCK_DEVICE, device(*major, *minor)),
        Content::Special(Special::Fifo) => (kind::FIFO, 0),
    };
    let format = if place.inline_bytes > 0 { FORMAT_INLINE } else { FORMAT_PLAIN };
    let mut encoded = [0; INODE_BYTES];
    put(&mut encoded, 0, &format.to_le_bytes())?;
    put(&mut encoded, 2, &xattrs_count(&meta.xattrs)?.to_le_bytes())?;
    put(&mut encoded, 4, &(kind_bits | meta.permissions).to_le_bytes())?;
    put(&mut encoded, 8, &content.bytes().to_le_bytes())?;
    put(&mut encoded, 16, &data.to_le_bytes())?;
    put(&mut encoded, 20, &number.to_le_bytes())?;
    put(&mut encoded, 24, &meta.uid.to_le_bytes())?;
    put(&mut encoded, 28, &meta.gid.to_le_bytes())?;
    // The kernel reads the seconds as signed.
    put(&mut encoded, 32, &meta.mtime_s.to_le_bytes())?;
    put(&mut encoded, 40, &meta.mtime_ns.to_le_bytes())?;
    put(&mut encoded, 44, &links.to_le_bytes())?;
    Ok(encoded)
}

/// The kinds of inodes in the field `i_mode`.
mod kind {
    pub(super) const FIFO: u16 = 0o010_000;
    pub(super) const CHAR_DEVICE: u16 = 0o020_000;
    pub(super) const FOLDER: u16 = 0o040_000;
    pub(super) const BLOCK_DEVICE: u16 = 0o060_000;
    pub(super) const FILE: u16 = 0o100_000;
    pub(super) const SYMLINK: u16 = 0o120_000;
}

/// Encodes a device number like Linux's `new_encode_dev`: 12 bits of the major number, 20 bits of the minor number.
fn device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}

/// Bytes of an inode's attributes in the image.
pub(super) fn xattrs_bytes(xattrs: &Xattrs) -> u64 {
    if xattrs.is_empty() {
        return 0;
    }
    let all = xattrs.iter().map(|(name, value)| {
        let (_, rest) = split_namespace(name);
        (XATTR_HEADER_BYTES + rest.len() + value.len()).next_multiple_of(XATTR_UNIT_BYTES)
    });
    (XATTRS_HEADER_BYTES + all.sum::<usize>()) as u64
}

/// Returns `i_xattr_icount`: the number of units in the attributes, where the header counts as one.
fn xattrs_count(xattrs: &Xattrs) -> io::Result<u16> {
    let header = (XATTRS_HEADER_BYTES - XATTR_UNIT_BYTES) as u64;
    let units = xattrs_bytes(xattrs).saturating_sub(header) / XATTR_UNIT_BYTES as u64;
    u16::try_from(units).map_err(io::Error::other)
}

pub(super) fn xattrs(xattrs: &Xattrs) -> io::Result<Vec<u8>> {
    let mut encoded = Vec::new();
    if !xattrs.is_empty() {
        encoded.resize(XATTRS_HEADER_BYTES, 0);
    }
    for (name, value) in xattrs.iter() {
        let (namespace, rest) = split_namespace(name);
        encoded.extend([u8::try_from(rest.len()).map_err(io::Error::other)?, namespace]);
        encoded.extend(u16::try_from(value.len()).map_err(io::Error::other)?.to_le_bytes());
        encoded.extend_from_slice(rest);
        encoded.extend_from_slice(value);
        encoded.resize(encoded.len().next_multiple_of(XATTR_UNIT_BYTES), 0);
    }
    Ok(encoded)
}

/// Splits an attribute's name into the number of its namespace and the rest. Other namespaces are not kept.
fn split_namespace(name: &[u8]) -> (u8, &[u8]) {
    let found =
        XATTR_NAMESPACES.iter().find_map(|(prefix, number)| Some((*number, name.strip_prefix(prefix.as_bytes())?)));
    found.unwrap_or((0, name))
}

/// Puts bytes at an offset of a buffer. Fails if the buffer ends before.
pub(super) fn put(buffer: &mut [u8], offset: usize, bytes: &[u8]) -> io::Result<()> {
    let Some(place) = buffer.get_mut(offset..).and_then(|rest| rest.get_mut(..bytes.len())) else {
        return Err(io::Error::other("a structure of the EROFS image does not fit into its place"));
    };
    place.copy_from_slice(bytes);
    Ok(())
}
