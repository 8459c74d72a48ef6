// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The merged tree of an image's layers.
//!
//! The tree exists in memory only, so no name of an entry can reach the host's file system. The merge follows the layer
//! chapter of the image specification. Where the chapter defines no rule, the merge follows `umoci unpack` and
//! containerd:
//!
//! - an entry replaces an older entry of the same path, but a folder that replaces a folder keeps the children;
//! - a whiteout removes entries of lower layers, never of its own layer, in any order of the layer's entries;
//! - symbolic links among an entry's parents are followed inside the tree: with a link `lib -> usr/lib`, the entry
//!   `lib/x` becomes `usr/lib/x`; if the target of a link is missing, its folders are created;
//! - missing parents are created with mode 0755 and owner 0:0; a parent that is a file is replaced by a folder;
//! - a hard link is one more name of its target's inode, also if a lower layer added the target. An entry that replaces
//!   one of the names, or a whiteout of one, leaves the other names as they are. The mode, owner, time and attributes
//!   of the link's own entry are ignored, as in `umoci unpack` and GNU tar; containerd would set them on the inode.

use std::collections::BTreeMap;

use super::{
    entry_name::{NameFlaw, Request, components, parse_name, parts},
    limits::{
        ENTRIES_MAX, METADATA_BYTES_MAX, NAME_BYTES_MAX, PATH_BYTES_MAX, PATH_DEPTH_MAX, SYMLINKS_FOLLOWED_MAX,
        TREE_STEPS_MAX,
    },
    tar_stream::{TarEntry, TarKind},
    xattrs::{self, XattrFlaw, Xattrs},
};

/// A file's content in the spool file.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Extent {
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

#[derive(Debug, Default)]
pub(super) struct Meta {
    pub(super) permissions: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime_s: i64,
    pub(super) mtime_ns: u32,
    pub(super) xattrs: Xattrs,
}

pub(super) type Children = BTreeMap<Box<[u8]>, Node>;

/// A name in a folder.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) entry: Entry,
    /// Number of the highest layer that set this node or a node below it.
    layer: usize,
}

#[derive(Debug)]
pub(super) enum Entry {
    Folder(Folder),
    /// Anything else. The names of a hard link have the same inode.
    Leaf(InodeId),
}

#[derive(Debug)]
pub(super) struct Folder {
    pub(super) meta: Meta,
    pub(super) children: Children,
}

/// Number of an inode in its tree.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct InodeId(usize);

impl InodeId {
    pub(super) fn index(self) -> usize {
        self.0
    }
}

#[derive(Debug)]
pub(super) struct Inode {
    pub(super) meta: Meta,
    pub(super) body: Body,
}

#[derive(Debug)]
pub(super) enum Body {
    File(Extent),
    Symlink(Box<[u8]>),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

/// An entry cannot be part of the tree.
#[derive(Debug, thiserror::Error)]
#[error("the entry {name:?} cannot be used: {reason}")]
pub struct EntryFault {
    pub name: String,
    pub reason: EntryFlaw,
}

/// The reason why an entry cannot be part of the tree.
#[derive(Debug, thiserror::Error)]
pub enum EntryFlaw {
    #[error("its name is invalid: {0}")]
    Name(NameFlaw),
    #[error("the target of its link is invalid: {0}")]
    Target(NameFlaw),
    #[error("the target of its link is empty, too long, or contains a NUL")]
    SymlinkTarget,
    #[error("it is a hard link to {target:?}, which was not found in lower layers or earlier in this layer")]
    LinkToNothing { target: String },
    #[error("it is a hard link to the folder {target:?}")]
    LinkToFolder { target: String },
    #[error("it would replace the root folder")]
    ReplacesRoot,
    /// Symbolic links form a cycle or a long chain.
    #[error("its path has more than {SYMLINKS_FOLLOWED_MAX} symbolic links")]
    TooManySymlinks,
    #[error("its path is too deep or too long after symbolic links are followed")]
    TooDeep,
    #[error("{0}")]
    Xattr(XattrFlaw),
    #[error("the image's layers have more than {ENTRIES_MAX} entries")]
    TooManyEntries,
    #[error("the image's layers have more than {METADATA_BYTES_MAX} bytes of names and attributes")]
    TooMuchMetadata,
    #[error("the image's layers take more than {TREE_STEPS_MAX} steps to merge")]
    TooManySteps,
}

/// The merged tree, and the counters of its limits.
#[derive(Debug)]
pub(super) struct Tree {
    root: Folder,
    /// The inodes of all layers. An inode without a name stays until the tree is dropped, and is not written.
    inodes: Vec<Inode>,
    entries: u64,
    metadata_bytes: u64,
    steps: u64,
}

impl Tree {
    pub(super) fn new() -> Self {
        Self { root: Folder::implicit(), inodes: Vec::new(), entries: 0, metadata_bytes: 0, steps: 0 }
    }

    pub(super) fn root(&self) -> &Folder {
        &self.root
    }

    pub(super) fn inode(&self, id: InodeId) -> Option<&Inode> {
        self.inodes.get(id.0)
    }

    pub(super) fn inode_count(&self) -> usize {
        self.inodes.len()
    }

    /// Applies an entry of layer number `layer`; the lowest layer is 0. `extent` is the content of a file.
    pub(super) fn apply(&mut self, layer: usize, entry: &TarEntry, extent: Extent) -> Result<(), EntryFault> {
        self.try_apply(layer, entry, extent)
            .map_err(|reason| EntryFault { name: String::from_utf8_lossy(&entry.path).into_owned(), reason })
    }

    fn try_apply(&mut self, layer: usize, entry: &TarEntry, extent: Extent) -> Result<(), EntryFlaw> {
        self.count_entry(entry.path.len())?;
        let (folders, request) = parse_name(&entry.path).map_err(EntryFlaw::Name)?;
        match request {
            Request::Ignore => Ok(()),
            Request::Root => {
                if entry.kind != TarKind::Folder {
                    return Err(EntryFlaw::ReplacesRoot);
                }
                self.root.meta = self.meta(entry)?;
                Ok(())
            }
            Request::Empty => self.white_out(&folders, None, layer),
            Request::Delete(name) => self.white_out(&folders, Some(name), layer),
            Request::Put(name) => {
                let node = Node { entry: self.entry(entry, extent)?, layer };
                let folders = self.resolve(&folders)?;
                if folders.len() >= PATH_DEPTH_MAX {
                    return Err(EntryFlaw::TooDeep);
                }
                put(self.make_folder(&folders, layer)?, name, node);
                Ok(())
            }
        }
    }

    fn entry(&mut self, entry: &TarEntry, extent: Extent) -> Result<Entry, EntryFlaw> {
        let body = match &entry.kind {
            TarKind::Folder => {
                return Ok(Entry::Folder(Folder { meta: self.meta(entry)?, children: Children::new() }));
            }
            TarKind::HardLink { target } => return Ok(Entry::Leaf(self.link_target(target)?)),
            TarKind::File { .. } => Body::File(extent),
            TarKind::Symlink { target } => {
                if target.is_empty() || target.len() >= PATH_BYTES_MAX || target.contains(&0) {
                    return Err(EntryFlaw::SymlinkTarget);
                }
                self.count_metadata(target.len())?;
                Body::Symlink(target.as_slice().into())
            }
            TarKind::CharDevice { major, minor } => Body::CharDevice(*major, *minor),
            TarKind::BlockDevice { major, minor } => Body::BlockDevice(*major, *minor),
            TarKind::Fifo => Body::Fifo,
        };
        let inode = Inode { meta: self.meta(entry)?, body };
        self.inodes.push(inode);
        Ok(Entry::Leaf(InodeId(self.inodes.len() - 1)))
    }

    fn link_target(&mut self, target: &[u8]) -> Result<InodeId, EntryFlaw> {
        let shown = || String::from_utf8_lossy(target).into_owned();
        let mut folders = components(target).map_err(EntryFlaw::Target)?;
        let Some(name) = folders.pop() else { return Err(EntryFlaw::LinkToFolder { target: shown() }) };
        let folders = self.resolve(&folders)?;
        let node = self.folder(&folders).and_then(|children| children.get(name));
        match node.map(|node| &node.entry) {
            None => Err(EntryFlaw::LinkToNothing { target: shown() }),
            Some(Entry::Folder(_)) => Err(EntryFlaw::LinkToFolder { target: shown() }),
            Some(Entry::Leaf(id)) => Ok(*id),
        }
    }

    fn meta(&mut self, entry: &TarEntry) -> Result<Meta, EntryFlaw> {
        let xattrs = xattrs::keep(&entry.xattrs).map_err(EntryFlaw::Xattr)?;
        self.count_metadata(xattrs.memory_bytes())?;
        let TarEntry { permissions, uid, gid, mtime_s, mtime_ns, .. } = *entry;
        Ok(Meta { permissions, uid, gid, mtime_s, mtime_ns, xattrs })
    }

    /// Resolves the symbolic links in a folder's path. The folder need not exist.
    fn resolve(&mut self, path: &[&[u8]]) -> Result<Vec<Box<[u8]>>, EntryFlaw> {
        let mut found: Vec<(Box<[u8]>, Option<&Entry>)> = Vec::new();
        let mut pending: Vec<Box<[u8]>> = path.iter().rev().map(|name| Box::from(*name)).collect();
        let mut followed = 0;
        while let Some(name) = pending.pop() {
            self.steps = self.steps.saturating_add(1);
            if self.steps > TREE_STEPS_MAX {
                return Err(EntryFlaw::TooManySteps);
            }
            if &*name == b".." {
                found.pop();
                continue;
            }
            let children = match found.last() {
                None => Some(&self.root.children),
                Some((_, Some(Entry::Folder(folder)))) => Some(&folder.children),
                Some(_) => None,
            };
            let entry = children.and_then(|children| children.get(&name)).map(|node| &node.entry);
            let inode = match entry {
                Some(Entry::Leaf(id)) => self.inodes.get(id.0),
                _ => None,
            };
            if let Some(Inode { body: Body::Symlink(target), .. }) = inode {
                followed += 1;
                if followed > SYMLINKS_FOLLOWED_MAX {
                    return Err(EntryFlaw::TooManySymlinks);
                }
                if target.starts_with(b"/") {
                    found.clear();
                }
                // A target that consists of slashes has no parts, but splitting the target takes time too.
                self.steps = self.steps.saturating_add(target.len() as u64);
                pending.extend(parts(target).rev().map(Box::from));
            } else {
                found.push((name, entry));
            }
        }
        let bytes: usize = found.iter().map(|(name, _)| name.len().saturating_add(1)).sum();
        let too_long = found.iter().any(|(name, _)| name.len() > NAME_BYTES_MAX);
        if found.len() > PATH_DEPTH_MAX || bytes > PATH_BYTES_MAX || too_long {
            return Err(EntryFlaw::TooDeep);
        }
        Ok(found.into_iter().map(|(name, _)| name).collect())
    }

    /// Returns the children of the folder at a path from `resolve`, or `None` if the folder does not exist.
    fn folder(&self, path: &[Box<[u8]>]) -> Option<&Children> {
        let mut children = &self.root.children;
        for name in path {
            let Entry::Folder(folder) = &children.get(name)?.entry else { return None };
            children = &folder.children;
        }
        Some(children)
    }

    /// Returns the children of the folder at a path from `resolve`. Creates missing folders, and sets `layer` in all
    /// folders of the path.
    fn make_folder(&mut self, path: &[Box<[u8]>], layer: usize) -> Result<&mut Children, EntryFlaw> {
        let Self { root, entries, metadata_bytes, .. } = self;
        let mut children = &mut root.children;
        for name in path {
            if !children.contains_key(name) {
                count(entries, 1, ENTRIES_MAX, EntryFlaw::TooManyEntries)?;
                count(metadata_bytes, name.len(), METADATA_BYTES_MAX, EntryFlaw::TooMuchMetadata)?;
            }
            let implicit = || Node { entry: Entry::Folder(Folder::implicit()), layer };
            let node = children.entry(name.clone()).or_insert_with(implicit);
            node.layer = layer;
            children = node.entry.make_children();
        }
        Ok(children)
    }

    /// Removes the entry `name` from a folder, or all entries of the folder if `name` is `None`. In both cases, only
    /// entries of layers below `layer` are removed.
    fn white_out(&mut self, folder: &[&[u8]], name: Option<&[u8]>, layer: usize) -> Result<(), EntryFlaw> {
        let path = self.resolve(folder)?;
        let Self { root, steps, .. } = self;
        let mut children = &mut root.children;
        for part in &path {
            let Some(Node { entry: Entry::Folder(below), .. }) = children.get_mut(part) else { return Ok(()) };
            children = &mut below.children;
        }
        match name {
            None => purge(children, layer, steps),
            Some(name) => {
                let Some(child) = children.get_mut(name) else { return Ok(()) };
                if child.layer < layer {
                    children.remove(name);
                } else if let Entry::Folder(below) = &mut child.entry {
                    purge(&mut below.children, layer, steps)?;
                }
                Ok(())
            }
        }
    }

    fn count_entry(&mut self, name_bytes: usize) -> Result<(), EntryFlaw> {
        count(&mut self.entries, 1, ENTRIES_MAX, EntryFlaw::TooManyEntries)?;
        self.count_metadata(name_bytes)
    }

    fn count_metadata(&mut self, bytes: usize) -> Result<(), EntryFlaw> {
        count(&mut self.metadata_bytes, bytes, METADATA_BYTES_MAX, EntryFlaw::TooMuchMetadata)
    }
}

impl Folder {
    fn implicit() -> Self {
        Self { meta: Meta { permissions: 0o755, ..Meta::default() }, children: Children::new() }
    }
}

impl Entry {
    /// Returns the children. Anything but a folder is first replaced by a folder.
    fn make_children(&mut self) -> &mut Children {
        if let Self::Leaf(_) = self {
            *self = Self::Folder(Folder::implicit());
        }
        match self {
            Self::Folder(folder) => &mut folder.children,
            Self::Leaf(_) => unreachable!("the entry was replaced by a folder above"),
        }
    }
}

/// Adds or replaces a child. A folder that replaces a folder takes over the old folder's children.
fn put(children: &mut Children, name: &[u8], mut node: Node) {
    if let Some(old) = children.get_mut(name)
        && let (Entry::Folder(old), Entry::Folder(new)) = (&mut old.entry, &mut node.entry)
    {
        std::mem::swap(&mut old.children, &mut new.children);
    }
    children.insert(name.into(), node);
}

/// Removes all entries of layers below `layer`, except folders that contain entries of `layer`.
fn purge(children: &mut Children, layer: usize, steps: &mut u64) -> Result<(), EntryFlaw> {
    count(steps, children.len(), TREE_STEPS_MAX, EntryFlaw::TooManySteps)?;
    children.retain(|_, child| child.layer >= layer);
    for child in children.values_mut() {
        if let Entry::Folder(below) = &mut child.entry {
            purge(&mut below.children, layer, steps)?;
        }
    }
    Ok(())
}

fn count(counter: &mut u64, more: usize, max: u64, flaw: EntryFlaw) -> Result<(), EntryFlaw> {
    *counter = counter.saturating_add(more as u64);
    if *counter > max { Err(flaw) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::{super::limits::XATTR_BYTES_MAX, *};

    /// Slashes in a link's target are not names, but reading them takes time too.
    #[test]
    fn long_link_targets_count_as_steps() {
        let mut tree = Tree::new();
        let target = format!("a{}", "/".repeat(PATH_BYTES_MAX - 2)).into_bytes();
        let link = TarEntry::plain("link", TarKind::Symlink { target });
        tree.apply(0, &link, Extent::default()).unwrap();
        let before = tree.steps;
        tree.apply(0, &TarEntry::plain("link/x", TarKind::Fifo), Extent::default()).unwrap();
        assert!(tree.steps - before >= PATH_BYTES_MAX as u64 - 1, "{}", tree.steps - before);
        tree.steps = TREE_STEPS_MAX - 1000;
        let fault = tree.apply(0, &TarEntry::plain("link/y", TarKind::Fifo), Extent::default()).unwrap_err();
        assert!(matches!(fault.reason, EntryFlaw::TooManySteps), "{fault}");
    }

    #[test]
    fn short_attributes_count_as_the_memory_that_they_use() {
        let mut tree = Tree::new();
        let count = XATTR_BYTES_MAX / 8;
        let mut entry = TarEntry::plain("file", TarKind::Fifo);
        entry.xattrs = (0..count).map(|number| (format!("user.{number:03x}").into_bytes(), Vec::new())).collect();
        tree.apply(0, &entry, Extent::default()).unwrap();
        let [Inode { meta, .. }] = tree.inodes.as_slice() else { panic!("{:?}", tree.inodes) };
        assert_eq!(meta.xattrs.iter().count(), count);
        let attributes = tree.metadata_bytes - "file".len() as u64;
        assert_eq!(attributes, count as u64 * 11);
        assert_eq!(attributes, meta.xattrs.memory_bytes() as u64);
        tree.metadata_bytes = METADATA_BYTES_MAX - attributes;
        let fault = tree.apply(0, &entry, Extent::default()).unwrap_err();
        assert!(matches!(fault.reason, EntryFlaw::TooMuchMetadata), "{fault}");
    }

    #[test]
    fn each_name_of_a_hard_link_counts_as_an_entry() {
        let mut tree = Tree::new();
        let target = b"target".to_vec();
        tree.apply(0, &TarEntry::plain("target", TarKind::Fifo), Extent::default()).unwrap();
        for number in 1..ENTRIES_MAX {
            let link = TarEntry::plain(&format!("{number}"), TarKind::HardLink { target: target.clone() });
            tree.apply(0, &link, Extent::default()).unwrap();
        }
        let link = TarEntry::plain("one more", TarKind::HardLink { target });
        let fault = tree.apply(0, &link, Extent::default()).unwrap_err();
        assert!(matches!(fault.reason, EntryFlaw::TooManyEntries), "{fault}");
        assert_eq!(tree.inode_count(), 1);
    }
}
