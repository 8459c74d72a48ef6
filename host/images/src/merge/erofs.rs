// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Writes the merged tree as an uncompressed EROFS image with blocks of 4 KiB.
//!
//! The writer is from the crate `erofs-builder`. The writer keeps files of at most one block in memory, searches
//! folders linearly and recurses into folders, so the tree is first checked against limits. The writer is async, but
//! the sink and the sources here are always ready, so each future completes at the first poll. The poll can block the
//! thread.

use std::{
    fs::File,
    io::{self, BufWriter, Seek as _, SeekFrom, Write as _},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use erofs_builder::{CreateOptions, InodeMeta, Writer, layout::mode};
use futures_util::FutureExt as _;
use tokio::io::{AsyncSeek, AsyncWrite};

use super::{
    control::MergeControl,
    file_range::FileRange,
    limits::{
        COMPARED_BYTES_PER_STEP, CONTENT_BYTES_MAX, ENTRIES_MAX, HASHED_BYTES_PER_STEP, METADATA_BYTES_MAX,
        PATHS_BYTES_MAX, SMALL_FILE_BYTES_MAX, WRITE_STEPS_MAX,
    },
    tree::{Body, Children, Meta, Node, Tree},
    xattrs,
};

/// Size of the sink's buffer, which is large because the writer makes many small writes.
const SINK_BUFFER_BYTES: usize = 1024 * 1024;

/// An image could not be written as EROFS.
#[derive(Debug, thiserror::Error)]
pub enum ErofsFault {
    #[error("the merged image exceeds a limit: {found} {what}; at most {max} are allowed")]
    TooMuch { what: &'static str, found: u64, max: u64 },
    /// The spool file cannot be read, the image cannot be written, or the merge was cancelled.
    #[error("failed to write the merged image (entry {path:?})")]
    Write {
        /// Path of the entry that was being written; empty after the last entry.
        path: String,
        source: io::Error,
    },
}

/// The measured size of a tree, and the cost of writing the tree.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Measure {
    pub(super) entries: u64,
    pub(super) content_bytes: u64,
    small_file_bytes: u64,
    metadata_bytes: u64,
    path_bytes: u64,
    steps: u64,
}

/// Writes the tree to `out`, with the file contents from `spool`. Returns the tree's measure.
pub(super) fn write(
    tree: &Tree,
    spool: &Arc<File>,
    out: &File,
    uuid: [u8; 16],
    control: &MergeControl,
) -> Result<Measure, ErofsFault> {
    let measure = measure(tree)?;
    let at = |path: &str| {
        let path = path.to_owned();
        move |source| ErofsFault::Write { path, source }
    };
    let sink = Sink { file: BufWriter::with_capacity(SINK_BUFFER_BYTES, out), control };
    let options = CreateOptions { uuid, ..CreateOptions::default() };
    let mut writer = finish_now(Writer::new(sink, options)).map_err(at("/"))?;
    let root = inode(mode::S_IFDIR, 0, &tree.root().meta);
    finish_now(writer.mkdir("/", root)).map_err(at("/"))?;
    let mut pending: Vec<(String, &Children)> =
        tree.root().children().map(|root| (String::new(), root)).into_iter().collect();
    while let Some((folder, children)) = pending.pop() {
        // Subfolders are written before other entries, because the writer finds each parent of a path by a linear
        // search in the order of writing.
        let (folders, leaves): (Vec<_>, Vec<_>) = children.iter().partition(|(_, node)| node.children().is_some());
        for (name, node) in &folders {
            let path = format!("{folder}/{name}");
            control.check().map_err(at(&path))?;
            finish_now(writer.mkdir(&path, inode(mode::S_IFDIR, 0, &node.meta))).map_err(at(&path))?;
        }
        for (name, node) in leaves {
            let path = format!("{folder}/{name}");
            control.check().map_err(at(&path))?;
            write_leaf(&mut writer, &path, node, spool).map_err(at(&path))?;
        }
        let below = folders.into_iter().rev();
        pending.extend(below.filter_map(|(name, node)| Some((format!("{folder}/{name}"), node.children()?))));
    }
    let mut sink = finish_now(writer.finish()).map_err(at(""))?;
    sink.file.flush().map_err(at(""))?;
    Ok(measure)
}

fn write_leaf(writer: &mut Writer<Sink<'_>>, path: &str, node: &Node, spool: &Arc<File>) -> io::Result<()> {
    let meta = &node.meta;
    match &node.body {
        Body::Folder(_) => Ok(()),
        Body::File(extent) => {
            let mut content = FileRange::new(Arc::clone(spool), extent.offset, extent.bytes);
            finish_now(writer.add_file(path, inode(mode::S_IFREG, 0, meta), extent.bytes, &mut content))
        }
        Body::Symlink(target) => finish_now(writer.symlink(path, target, inode(mode::S_IFLNK, 0, meta))),
        Body::CharDevice(major, minor) => {
            finish_now(writer.mknod(path, inode(mode::S_IFCHR, device(*major, *minor), meta)))
        }
        Body::BlockDevice(major, minor) => {
            finish_now(writer.mknod(path, inode(mode::S_IFBLK, device(*major, *minor), meta)))
        }
        Body::Fifo => finish_now(writer.mknod(path, inode(mode::S_IFIFO, 0, meta))),
    }
}

fn inode(kind: u16, rdev: u32, meta: &Meta) -> InodeMeta {
    InodeMeta {
        mode: kind | meta.permissions,
        uid: meta.uid,
        gid: meta.gid,
        // The kernel reads the field as signed.
        mtime: meta.mtime_s.cast_unsigned(),
        mtime_nsec: meta.mtime_ns,
        nlink: None,
        rdev,
        xattrs: (*meta.xattrs).clone(),
    }
}

/// Encodes a device number like Linux's `new_encode_dev`: 12 bits of the major number, 20 bits of the minor number.
fn device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}

fn measure(tree: &Tree) -> Result<Measure, ErofsFault> {
    let block_bytes = erofs_builder::DEFAULT_BLOCK_SIZE as u64;
    let mut sum = Measure { entries: 1, ..Measure::default() };
    let mut pending: Vec<Unmeasured<'_>> = tree
        .root()
        .children()
        .map(|children| Unmeasured { children, path_bytes: 0, depth: 0, lookup_steps: 0 })
        .into_iter()
        .collect();
    while let Some(Unmeasured { children, path_bytes, depth, lookup_steps }) = pending.pop() {
        let siblings = children.len() as u64;
        sum.entries = sum.entries.saturating_add(siblings);
        let longest = children.keys().map(|name| name.len() as u64).max().unwrap_or(0);
        let searched = siblings.saturating_mul(lookup_steps.saturating_add(siblings / 2));
        let searched = searched.saturating_mul(1 + longest / COMPARED_BYTES_PER_STEP);
        let hashed = siblings.saturating_mul(depth * (path_bytes + longest) / HASHED_BYTES_PER_STEP);
        sum.steps = sum.steps.saturating_add(searched).saturating_add(hashed);
        for (at, (name, node)) in (0_u64..).zip(children) {
            let mut metadata = name.len() + xattrs::bytes(&node.meta.xattrs);
            let path_bytes = path_bytes + name.len() as u64 + 1;
            sum.path_bytes = sum.path_bytes.saturating_add(path_bytes);
            match &node.body {
                Body::Folder(children) => {
                    sum.path_bytes = sum.path_bytes.saturating_add(path_bytes);
                    let lookup_steps = lookup_steps.saturating_add(at).saturating_add(1);
                    pending.push(Unmeasured { children, path_bytes, depth: depth + 1, lookup_steps });
                }
                Body::File(extent) => {
                    sum.content_bytes = sum.content_bytes.saturating_add(extent.bytes);
                    if extent.bytes <= block_bytes {
                        sum.small_file_bytes = sum.small_file_bytes.saturating_add(extent.bytes);
                    }
                }
                Body::Symlink(target) => metadata += target.len(),
                Body::CharDevice(..) | Body::BlockDevice(..) | Body::Fifo => {}
            }
            sum.metadata_bytes = sum.metadata_bytes.saturating_add(metadata as u64);
        }
    }
    sum.check()?;
    Ok(sum)
}

/// A folder to measure.
struct Unmeasured<'a> {
    children: &'a Children,
    path_bytes: u64,
    depth: u64,
    /// Number of comparisons that the writer makes to find the folder.
    lookup_steps: u64,
}

impl Measure {
    fn check(&self) -> Result<(), ErofsFault> {
        let limits = [
            ("entries", self.entries, ENTRIES_MAX),
            ("bytes of content", self.content_bytes, CONTENT_BYTES_MAX),
            ("bytes in files of at most 4 KiB", self.small_file_bytes, SMALL_FILE_BYTES_MAX),
            ("bytes of names and attributes", self.metadata_bytes, METADATA_BYTES_MAX),
            ("bytes of paths", self.path_bytes, PATHS_BYTES_MAX),
            ("steps to write the image", self.steps, WRITE_STEPS_MAX),
        ];
        match limits.into_iter().find(|(_, found, max)| found > max) {
            Some((what, found, max)) => Err(ErofsFault::TooMuch { what, found, max }),
            None => Ok(()),
        }
    }
}

/// Polls a future once. Fails if the future is pending.
fn finish_now<T>(future: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    future.now_or_never().unwrap_or_else(|| Err(io::Error::other("the EROFS writer returned a pending future")))
}

/// The sink of the async writer, which writes to the image's file. Writes fail once the merge is cancelled.
struct Sink<'a> {
    file: BufWriter<&'a File>,
    control: &'a MergeControl,
}

impl AsyncWrite for Sink<'_> {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(self.control.check().and_then(|()| self.file.write(bytes)))
    }

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.file.flush())
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(context)
    }
}

impl AsyncSeek for Sink<'_> {
    fn start_seek(mut self: Pin<&mut Self>, to: SeekFrom) -> io::Result<()> {
        self.file.seek(to).map(|_| ())
    }

    fn poll_complete(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Poll::Ready(self.file.stream_position())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merge::{
        limits::NAME_BYTES_MAX,
        tar_stream::{TarEntry, TarKind},
        tree::Extent,
    };

    fn tree_of(paths: &[&str]) -> Tree {
        let mut tree = Tree::new();
        for path in paths {
            tree.apply(0, &TarEntry::plain(path, TarKind::Fifo), Extent::default()).unwrap();
        }
        tree
    }

    #[test]
    fn measure_counts_the_paths_in_memory() {
        let measure = measure(&tree_of(&["a/bc/d", "e"])).unwrap();
        assert_eq!(measure.entries, 5);
        // Twice the lengths of "/a" and "/a/bc", plus the lengths of "/a/bc/d" and "/e".
        assert_eq!(measure.path_bytes, 2 * 2 + 2 * 5 + 7 + 2);
    }

    #[test]
    fn measure_counts_deep_paths_and_long_names_as_steps() {
        let deep = format!("{}x", "folder/".repeat(200));
        let steps = |paths: &[&str]| measure(&tree_of(paths)).unwrap().steps;
        // For each of the 201 entries, the writer hashes each prefix of the entry's path.
        assert!(steps(&[&deep]) > 200 * 200 / 2 * 200 / HASHED_BYTES_PER_STEP, "{}", steps(&[&deep]));
        let short: Vec<_> = (0..100).map(|number| format!("{number:03}")).collect();
        let long: Vec<_> = short.iter().map(|name| format!("{}{name}", "n".repeat(NAME_BYTES_MAX - 3))).collect();
        let steps = |names: &[String]| steps(&names.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(steps(&long), 4 * steps(&short));
    }

    #[test]
    fn rejects_too_many_bytes_of_paths() {
        let measure = Measure { path_bytes: PATHS_BYTES_MAX + 1, ..Measure::default() };
        let text = measure.check().unwrap_err().to_string();
        assert_eq!(text, "the merged image exceeds a limit: 536870913 bytes of paths; at most 536870912 are allowed");
    }
}
