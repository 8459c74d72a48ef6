// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The inodes of an image, in the order of their numbers: a folder's children together, then those of its first
//! subfolder. An inode that no name refers to is left out.

use super::{
    super::tree::{Body, Entry, Extent, Folder, Meta, Tree},
    dirents::Names,
};

#[derive(Debug)]
pub(super) struct Inode<'a> {
    pub(super) meta: &'a Meta,
    pub(super) links: u32,
    pub(super) content: Content<'a>,
}

#[derive(Debug)]
pub(super) enum Content<'a> {
    Folder(Names<'a>),
    File(Extent),
    Symlink(&'a [u8]),
    Special(Special),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Special {
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

impl Inode<'_> {
    pub(super) fn is_folder(&self) -> bool {
        matches!(self.content, Content::Folder(_))
    }
}

impl Content<'_> {
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Folder(names) => names.bytes(),
            Self::File(extent) => extent.bytes,
            Self::Symlink(target) => target.len() as u64,
            Self::Special(_) => 0,
        }
    }

    /// The kind of an inode in a folder's records: `FT_*` of the kernel's `include/linux/fs_types.h`.
    pub(super) fn dirent_kind(&self) -> u8 {
        match self {
            Self::File(_) => 1,
            Self::Folder(_) => 2,
            Self::Special(Special::CharDevice(..)) => 3,
            Self::Special(Special::BlockDevice(..)) => 4,
            Self::Special(Special::Fifo) => 5,
            Self::Symlink(_) => 7,
        }
    }
}

/// Returns the tree's inodes; the first is the root folder. Names refer to positions in the result.
pub(super) fn number(tree: &Tree) -> Vec<Inode<'_>> {
    let mut found = vec![folder(tree.root())];
    // The position of each inode of the tree, once a name has referred to it.
    let mut positions: Vec<Option<usize>> = vec![None; tree.inode_count()];
    let mut pending = vec![(0, 0, tree.root())];
    while let Some((at, parent, of)) = pending.pop() {
        let mut names = Vec::with_capacity(of.children.len() + 2);
        let first_subfolder = pending.len();
        for (name, node) in &of.children {
            let position = match &node.entry {
                Entry::Folder(subfolder) => {
                    pending.push((found.len(), at, subfolder));
                    found.push(folder(subfolder));
                    found.len() - 1
                }
                Entry::Leaf(id) => {
                    let Some((seen, inode)) = positions.get_mut(id.index()).zip(tree.inode(*id)) else { continue };
                    let position = *seen.get_or_insert_with(|| {
                        found.push(Inode { meta: &inode.meta, links: 0, content: content(&inode.body) });
                        found.len() - 1
                    });
                    if let Some(inode) = found.get_mut(position) {
                        inode.links = inode.links.saturating_add(1);
                    }
                    position
                }
            };
            names.push((&**name, position));
        }
        let subfolders = u32::try_from(pending.len() - first_subfolder).unwrap_or(u32::MAX);
        if let Some(below) = pending.get_mut(first_subfolder..) {
            below.reverse();
        }
        if let Some(inode) = found.get_mut(at) {
            inode.links = inode.links.saturating_add(subfolders);
            inode.content = Content::Folder(Names::new(names, at, parent));
        }
    }
    found
}

/// Creates the inode of a folder without children. Its links are its name and its own entry `.`; each subfolder's `..`
/// is one more.
fn folder(folder: &Folder) -> Inode<'_> {
    Inode { meta: &folder.meta, links: 2, content: Content::Folder(Names::default()) }
}

fn content(body: &Body) -> Content<'_> {
    match body {
        Body::File(extent) => Content::File(*extent),
        Body::Symlink(target) => Content::Symlink(target),
        Body::CharDevice(major, minor) => Content::Special(Special::CharDevice(*major, *minor)),
        Body::BlockDevice(major, minor) => Content::Special(Special::BlockDevice(*major, *minor)),
        Body::Fifo => Content::Special(Special::Fifo),
    }
}
