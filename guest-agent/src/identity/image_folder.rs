// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Replaces files in folders of the image, wherever the image's links lead.
//!
//! Links in the path to a folder are followed, but neither out of the root, nor to another file system, such as `/proc`
//! or `/dev`. No file is opened for writing: it is replaced by a new file, so that no link, pipe or device in its place
//! is used.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2, renameat},
    sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat},
    unistd::{UnlinkatFlags, unlinkat},
};

use crate::{random::random_hex, sandbox_user::FILE_BYTES_MAX};

/// An open folder.
#[derive(Debug)]
pub(super) struct ImageFolder(OwnedFd);

impl ImageFolder {
    /// Opens the folder at `path`, which is relative to `root`.
    pub(super) fn open(root: &Path, path: &str) -> io::Result<Self> {
        Ok(Self(open_in(root, path, OFlag::O_DIRECTORY)?))
    }

    /// Returns whether the folder has a file of this name that is not a link.
    pub(super) fn has_regular_file(&self, name: &str) -> bool {
        fstatat(&self.0, name, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok_and(|stat| is_regular(&stat))
    }

    /// Replaces everything of this name, except for a folder, by a file with this text.
    pub(super) fn replace(&self, name: &str, text: &[u8], mode: u32) -> io::Result<()> {
        let temporary = format!(".waggle-{}", random_hex()?);
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let how = OpenHow::new().flags(flags).mode(Mode::S_IRUSR).resolve(ResolveFlag::RESOLVE_BENEATH);
        let mut file = File::from(openat2(&self.0, temporary.as_str(), how)?);
        let mut write = || -> io::Result<()> {
            file.write_all(text)?;
            fchmod(&file, Mode::from_bits_truncate(mode))?;
            Ok(renameat(&self.0, temporary.as_str(), &self.0, name)?)
        };
        write().inspect_err(|_fault| {
            // The first error is the one to report.
            let _removed = unlinkat(&self.0, temporary.as_str(), UnlinkatFlags::NoRemoveDir);
        })
    }
}

/// Returns the content of the file that `path`, relative to `root`, leads to; `None` if it leads to no regular file. A
/// file with more than [`FILE_BYTES_MAX`] bytes is an error.
pub(super) fn read_file(root: &Path, path: &str) -> io::Result<Option<Vec<u8>>> {
    // The file is not opened for reading before its type is known, because opening a pipe would block.
    let file = match open_in(root, path, OFlag::empty()) {
        Ok(file) if is_regular(&fstat(&file)?) => file,
        Ok(_) | Err(_) => return Ok(None),
    };
    // Opens the same file for reading, without waiting for a lease that a program holds.
    let mut options = File::options();
    let options = options.read(true).custom_flags(OFlag::O_NONBLOCK.bits());
    let opened = options.open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let mut found = Vec::new();
    opened.take(FILE_BYTES_MAX + 1).read_to_end(&mut found)?;
    if found.len() as u64 > FILE_BYTES_MAX { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(Some(found)) }
}

fn open_in(root: &Path, path: &str, flags: OFlag) -> Result<OwnedFd, Errno> {
    let root = open(root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    openat2(&root, path, OpenHow::new().flags(flags | OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(resolve))
}

fn is_regular(stat: &FileStat) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits()
}

// QEMU's user-mode emulation, which runs the tests for aarch64, has no `openat2`.
#[cfg(target_arch = "x86_64")]
#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn links_of_a_path_stay_in_the_root_and_on_its_file_system() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("usr/etc")).unwrap();
        fs::create_dir(root.path().join("tmp")).unwrap();
        symlink("/usr/etc", root.path().join("etc")).unwrap();
        ImageFolder::open(root.path(), "etc").unwrap().replace("name", b"text", 0o644).unwrap();
        assert_eq!(fs::read_to_string(root.path().join("usr/etc/name")).unwrap(), "text");
        symlink("../../../../tmp", root.path().join("out")).unwrap();
        ImageFolder::open(root.path(), "out").unwrap().replace("name", b"text", 0o644).unwrap();
        assert!(root.path().join("tmp/name").is_file());
        // In the machine's own root, with other file systems.
        let other = ["/proc", "/dev"].map(|path| ImageFolder::open(Path::new("/"), path).unwrap_err().raw_os_error());
        assert_eq!(other, [Some(Errno::EXDEV as i32); 2]);
        let magic = ImageFolder::open(Path::new("/"), "proc/self/root").unwrap_err();
        assert_eq!(magic.raw_os_error(), Some(Errno::EXDEV as i32));
    }
}
