// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The guest's initial root: a read-only file system in this process's memory, which contains no file of the host.

use std::{
    ffi::CStr,
    fs::File,
    io::{self, Write},
    path::Path,
    time::Duration,
};

use msb_krun::backends::fs::{
    AddDirEntry, Context, DirEntry, DynFileSystem, Entry, FsOptions, OpenOptions, SetattrValid, ZeroCopyWriter, stat64,
};
use nix::libc;
use rustix::fs::{MemfdFlags, memfd_create};
use waggle_protocol::boot::BOOT_CONFIG_PATH;

use crate::machines::{
    krun::guest_files::{AGENT_MODE, BOOT_MODE, FOLDER_MODE, FOLDERS, GuestFiles, INIT},
    sys,
};

/// The number of the root folder in the protocol of virtiofs. A node's number is its position, counted from 1.
const ROOT: u64 = 1;
/// The time for which the guest's kernel caches names and attributes. They never change.
const CACHED: Duration = Duration::from_secs(86_400);
const BLOCK_BYTES: u64 = 512;
const IO_BYTES: i64 = 4096;

#[derive(Debug)]
struct Node {
    parent: u64,
    name: &'static [u8],
    /// The permissions.
    mode: u32,
    /// The content and its length, if the node is a file.
    content: Option<(File, u64)>,
}

/// The file system.
#[derive(Debug)]
pub(crate) struct Root(Vec<Node>);

impl Root {
    /// Copies the files into memory.
    ///
    /// # Errors
    /// The kernel's error.
    pub(crate) fn new(files: GuestFiles) -> io::Result<Self> {
        let mut root = Self(vec![Node { parent: ROOT, name: b"", mode: FOLDER_MODE, content: None }]);
        for folder in FOLDERS {
            root.add(folder, FOLDER_MODE, None)?;
        }
        root.add(INIT, AGENT_MODE, Some(files.agent))?;
        root.add(BOOT_CONFIG_PATH, BOOT_MODE, Some(files.boot))?;
        Ok(root)
    }

    /// Adds a file or folder. Its parent must have been added before.
    fn add(&mut self, path: &'static str, mode: u32, content: Option<&[u8]>) -> io::Result<()> {
        let path = Path::new(path);
        let parent = path.parent().into_iter().flat_map(Path::components).skip(1);
        let parent = parent.into_iter().try_fold(ROOT, |parent, name| {
            self.find(parent, name.as_os_str().as_encoded_bytes()).ok_or(io::ErrorKind::NotFound)
        })?;
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        let content = content.map(in_memory).transpose()?;
        self.0.push(Node { parent, name, mode, content });
        Ok(())
    }

    fn find(&self, parent: u64, name: &[u8]) -> Option<u64> {
        self.children(parent).find(|(_, node)| node.name == name).map(|(number, _)| number)
    }

    fn children(&self, parent: u64) -> impl Iterator<Item = (u64, &Node)> {
        (ROOT..).zip(&self.0).skip(1).filter(move |(_, node)| node.parent == parent)
    }

    fn node(&self, number: u64) -> io::Result<&Node> {
        let position = number.checked_sub(ROOT).and_then(|position| usize::try_from(position).ok());
        position.and_then(|position| self.0.get(position)).ok_or_else(|| errno(libc::ENOENT))
    }

    fn attributes(&self, number: u64) -> io::Result<stat64> {
        let node = self.node(number)?;
        let (kind, bytes) = match &node.content {
            Some((_, bytes)) => (libc::S_IFREG, *bytes),
            None => (libc::S_IFDIR, 0),
        };
        let number_of = |count: u64| i64::try_from(count).map_err(io::Error::other);
        let mut attributes = sys::zeroed_attributes();
        attributes.st_ino = number;
        attributes.st_mode = kind | node.mode;
        attributes.st_nlink = 1;
        attributes.st_size = number_of(bytes)?;
        attributes.st_blocks = number_of(bytes.div_ceil(BLOCK_BYTES))?;
        attributes.st_blksize = IO_BYTES;
        Ok(attributes)
    }
}

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

fn in_memory(content: &[u8]) -> io::Result<(File, u64)> {
    let mut file = File::from(memfd_create("root", MemfdFlags::CLOEXEC)?);
    file.write_all(content)?;
    Ok((file, content.len() as u64))
}

/// All methods that the guest does not need keep their default: an error that says that the method does not exist.
impl DynFileSystem for Root {
    fn init(&self, _: FsOptions) -> io::Result<FsOptions> {
        Ok(FsOptions::empty())
    }

    fn lookup(&self, _: Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        let inode = self.find(parent, name.to_bytes()).ok_or_else(|| errno(libc::ENOENT))?;
        let attr = self.attributes(inode)?;
        Ok(Entry { inode, generation: 0, attr, attr_flags: 0, attr_timeout: CACHED, entry_timeout: CACHED })
    }

    fn getattr(&self, _: Context, inode: u64, _: Option<u64>) -> io::Result<(stat64, Duration)> {
        Ok((self.attributes(inode)?, CACHED))
    }

    fn setattr(
        &self,
        _: Context,
        _: u64,
        _: stat64,
        _: Option<u64>,
        _: SetattrValid,
    ) -> io::Result<(stat64, Duration)> {
        Err(errno(libc::EROFS))
    }

    fn open(&self, _: Context, _: u64, _: bool, _: u32) -> io::Result<(Option<u64>, OpenOptions)> {
        Ok((None, OpenOptions::KEEP_CACHE))
    }

    fn read(
        &self,
        _: Context,
        inode: u64,
        _: u64,
        writer: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        _: Option<u64>,
        _: u32,
    ) -> io::Result<usize> {
        let (file, bytes) = self.node(inode)?.content.as_ref().ok_or_else(|| errno(libc::EISDIR))?;
        match usize::try_from(bytes.saturating_sub(offset).min(size.into())) {
            Ok(0) => Ok(0),
            Ok(count) => writer.write_from(file, count, offset),
            Err(fault) => Err(io::Error::other(fault)),
        }
    }

    fn readdir_for_each(
        &self,
        _: Context,
        inode: u64,
        _: u64,
        _: u32,
        offset: u64,
        add: &mut AddDirEntry<'_>,
    ) -> io::Result<()> {
        let folder = self.node(inode)?;
        let own = [(inode, libc::DT_DIR, b".".as_slice()), (folder.parent, libc::DT_DIR, b"..")];
        let children = self.children(inode).map(|(number, node)| {
            (number, if node.content.is_some() { libc::DT_REG } else { libc::DT_DIR }, node.name)
        });
        let first = usize::try_from(offset).unwrap_or(usize::MAX);
        for (next, (ino, kind, name)) in (1..).zip(own.into_iter().chain(children)).skip(first) {
            if add(DirEntry { ino, offset: next, type_: kind.into(), name })? == 0 {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    const CALLER: Context = Context { uid: 0, gid: 0, pid: 1 };

    struct Collected(Vec<u8>);

    impl ZeroCopyWriter for Collected {
        fn write_from(&mut self, file: &File, count: usize, offset: u64) -> io::Result<usize> {
            self.0 = vec![0; count];
            file.read_exact_at(&mut self.0, offset)?;
            Ok(count)
        }
    }

    fn root() -> Root {
        Root::new(GuestFiles { agent: b"agent", boot: b"boot configuration" }).unwrap()
    }

    fn read(root: &Root, inode: u64, size: u32, offset: u64) -> io::Result<Vec<u8>> {
        let mut collected = Collected(Vec::new());
        root.read(CALLER, inode, 0, &mut collected, size, offset, None, 0)?;
        Ok(collected.0)
    }

    #[test]
    fn files_are_found_by_name_and_read_to_their_end() {
        let root = root();
        let folder = root.lookup(CALLER, ROOT, c"waggle").unwrap();
        let file = root.lookup(CALLER, folder.inode, c"boot").unwrap();
        assert_eq!((file.attr.st_mode, file.attr.st_size), (libc::S_IFREG | BOOT_MODE, 18));
        assert_eq!(read(&root, file.inode, 4096, 5).unwrap(), b"configuration");
        assert_eq!(read(&root, file.inode, 4096, u64::MAX).unwrap(), b"");
        let agent = root.lookup(CALLER, ROOT, c"init.krun").unwrap();
        assert_eq!(read(&root, agent.inode, 3, 0).unwrap(), b"age");
    }

    #[test]
    fn folders_list_their_entries_from_any_offset() {
        let root = root();
        let list = |inode, offset| {
            let mut names = Vec::new();
            let mut add = |entry: DirEntry<'_>| {
                names.push(String::from_utf8_lossy(entry.name).into_owned());
                Ok(1)
            };
            root.readdir_for_each(CALLER, inode, 0, 0, offset, &mut add).map(|()| names)
        };
        let all = list(ROOT, 0).unwrap();
        assert_eq!(all.len(), 2 + FOLDERS.len() + 1, "{all:?}");
        assert_eq!(list(ROOT, all.len() as u64 - 1).unwrap(), ["init.krun"]);
        assert_eq!(list(ROOT, u64::MAX).unwrap(), [""; 0]);
    }

    #[test]
    fn unknown_numbers_and_names_are_refused() {
        let root = root();
        for number in [0, 1000, u64::MAX] {
            assert_eq!(root.getattr(CALLER, number, None).unwrap_err().raw_os_error(), Some(libc::ENOENT));
            assert!(root.lookup(CALLER, number, c"dev").is_err());
            assert!(read(&root, number, 1, 0).is_err());
        }
        assert_eq!(read(&root, ROOT, 1, 0).unwrap_err().raw_os_error(), Some(libc::EISDIR));
        assert!(root.lookup(CALLER, ROOT, c"..").is_err());
    }
}
