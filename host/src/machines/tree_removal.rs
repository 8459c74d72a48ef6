// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Removes a folder that a hostile process could write to.
//!
//! The standard library's `remove_dir_all` needs a stack frame and a descriptor for each level, so a very deep tree
//! aborts the process. This module opens only two folders at a time, at any depth. It moves each nested folder to the
//! top level, and empties the folder there later. A file system may skip entries of a folder while other entries are
//! removed, so each folder is read again until it is empty. The removal follows no symbolic link, and stops at a
//! deadline.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
    time::Instant,
};

use rustix::{
    fs::{
        AtFlags, CWD, Dir, DirEntry, FileType, Mode, OFlags, chmod, fchmod, fstat, openat, renameat, statat, unlinkat,
    },
    io::Errno,
    path::Arg,
};

/// Removes the folder at `path` with its content, if it exists.
///
/// # Errors
/// The system's error, or [`io::ErrorKind::TimedOut`] at the deadline. Part of the content may be removed already.
pub(super) fn remove_tree(path: &Path, deadline: Instant) -> io::Result<()> {
    let top = match open_folder(CWD, path) {
        Err(Errno::NOENT) => return Ok(()),
        opened => opened?,
    };
    let mut removal = Removal { top, moved: 0, deadline };
    while removal.pass()? {}
    Ok(unlinkat(CWD, path, AtFlags::REMOVEDIR)?)
}

struct Removal {
    top: OwnedFd,
    /// Counter for the names of folders that are moved to the top.
    moved: u64,
    deadline: Instant,
}

impl Removal {
    /// Removes each entry of the top folder. Returns false if the top folder was empty.
    fn pass(&mut self) -> io::Result<bool> {
        let mut found = false;
        for entry in Dir::read_from(&self.top)? {
            let entry = entry?;
            if is_dots(entry.file_name()) {
                continue;
            }
            found = true;
            self.check_time()?;
            or_gone(self.remove(&entry))?;
        }
        Ok(found)
    }

    fn remove(&mut self, entry: &DirEntry) -> io::Result<()> {
        let name = entry.file_name();
        if !is_folder(self.top.as_fd(), entry)? {
            return Ok(unlinkat(&self.top, name, AtFlags::empty())?);
        }
        let folder = open_folder(self.top.as_fd(), name)?;
        while self.empty(folder.as_fd())? {}
        Ok(unlinkat(&self.top, name, AtFlags::REMOVEDIR)?)
    }

    /// Removes the files of a subfolder and moves its folders to the top. Returns false if the subfolder was empty.
    fn empty(&mut self, folder: BorrowedFd<'_>) -> io::Result<bool> {
        let mut found = false;
        for entry in Dir::read_from(folder)? {
            let entry = entry?;
            if is_dots(entry.file_name()) {
                continue;
            }
            found = true;
            self.check_time()?;
            or_gone(if is_folder(folder, &entry)? {
                self.move_up(folder, entry.file_name())
            } else {
                unlinkat(folder, entry.file_name(), AtFlags::empty()).map_err(io::Error::from)
            })?;
        }
        Ok(found)
    }

    fn move_up(&mut self, folder: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
        loop {
            self.check_time()?;
            self.moved += 1;
            match renameat(folder, name, &self.top, format!(".moved-{}", self.moved)) {
                // Moving a folder requires write permission on the folder itself.
                Err(Errno::ACCESS) => make_accessible(folder, name)?,
                // The hostile process has already created an entry with this name, so the next number is tried.
                Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
                outcome => return Ok(outcome?),
            }
        }
    }

    fn check_time(&self) -> io::Result<()> {
        if Instant::now() < self.deadline {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, "the removal timed out"))
    }
}

/// Treats an entry that has vanished as removed.
fn or_gone(outcome: io::Result<()>) -> io::Result<()> {
    outcome.or_else(|fault| if fault.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(fault) })
}

fn open_folder<P: Arg + Copy>(parent: BorrowedFd<'_>, name: P) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = match openat(parent, name, flags, Mode::empty()) {
        Err(Errno::ACCESS) => {
            make_accessible(parent, name)?;
            openat(parent, name, flags, Mode::empty())?
        }
        opened => opened?,
    };
    if !Mode::from_raw_mode(fstat(&folder)?.st_mode).contains(Mode::RWXU) {
        fchmod(&folder, Mode::RWXU)?;
    }
    Ok(folder)
}

/// Gives this user all permissions on a folder that the user owns.
fn make_accessible<P: Arg>(parent: BorrowedFd<'_>, name: P) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = openat(parent, name, flags, Mode::empty())?;
    // chmod by name follows symbolic links, and fchmod does not accept an O_PATH descriptor.
    chmod(format!("/proc/self/fd/{}", folder.as_raw_fd()), Mode::RWXU)
}

fn is_folder(parent: BorrowedFd<'_>, entry: &DirEntry) -> Result<bool, Errno> {
    let mut kind = entry.file_type();
    if kind == FileType::Unknown {
        kind = FileType::from_raw_mode(statat(parent, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)?.st_mode);
    }
    Ok(kind == FileType::Directory)
}

fn is_dots(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::{PermissionsExt, symlink},
        thread,
        time::Duration,
    };

    use nix::unistd::{Uid, setfsuid};
    use rustix::fs::mkdirat;

    use super::*;

    /// Depth of a tree in which `remove_dir_all` overflows a stack of [`STACK_BYTES`] and runs out of descriptors.
    const DEPTH: usize = 30_000;
    /// The stack size of tokio's blocking threads.
    const STACK_BYTES: usize = 2 * 1024 * 1024;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(600)
    }

    /// A temporary folder, in memory if possible, because creating a deep tree takes a minute on a busy disk.
    fn folder() -> tempfile::TempDir {
        tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
    }

    #[test]
    fn removes_a_tree_deeper_than_the_stack() {
        let parent = folder();
        let path = parent.path().join("machine");
        fs::create_dir(&path).unwrap();
        let mut folder = open_folder(CWD, &path).unwrap();
        for _ in 0..DEPTH {
            mkdirat(&folder, "d", Mode::RWXU).unwrap();
            folder = openat(&folder, "d", OFlags::PATH, Mode::empty()).unwrap();
        }
        let removed = path.clone();
        let removal = thread::Builder::new().stack_size(STACK_BYTES).spawn(move || remove_tree(&removed, soon()));
        removal.unwrap().join().unwrap().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn removes_a_broad_tree_with_conflicting_names() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("machine");
        for number in 0..50 {
            let folder = path.join(format!(".moved-{number}/d/.moved-{number}"));
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("file"), b"x").unwrap();
            fs::write(path.join(format!(".moved-{}", 50 + number)), b"x").unwrap();
        }
        remove_tree(&path, soon()).unwrap();
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn removes_symbolic_links_but_not_their_targets() {
        let parent = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::write(elsewhere.path().join("mine"), b"x").unwrap();
        let path = parent.path().join("machine");
        fs::create_dir_all(path.join("d")).unwrap();
        symlink(elsewhere.path(), path.join("link")).unwrap();
        symlink(elsewhere.path(), path.join("d/link")).unwrap();
        remove_tree(&path, soon()).unwrap();
        assert!(!path.exists());
        assert!(elsewhere.path().join("mine").exists());
        symlink(elsewhere.path(), &path).unwrap();
        let fault = remove_tree(&path, soon()).unwrap_err();
        assert_eq!(fault.kind(), io::ErrorKind::NotADirectory);
        assert!(elsewhere.path().join("mine").exists());
    }

    #[test]
    fn removes_folders_without_permissions() {
        let parent = tempfile::tempdir().unwrap();
        fs::set_permissions(parent.path(), Permissions::from_mode(0o777)).unwrap();
        let path = parent.path().join("machine");
        let removal = thread::spawn(move || {
            // Root ignores permissions, so the thread becomes an ordinary user.
            setfsuid(Uid::from_raw(65_534));
            fs::create_dir_all(path.join("a/b/c")).unwrap();
            for folder in ["a/b/c", "a/b", "a", ""] {
                fs::set_permissions(path.join(folder), Permissions::from_mode(0o000)).unwrap();
            }
            remove_tree(&path, soon()).map(|()| path.exists())
        });
        assert!(!removal.join().unwrap().unwrap());
    }

    #[test]
    fn stops_at_the_deadline() {
        let parent = tempfile::tempdir().unwrap();
        fs::create_dir(parent.path().join("d")).unwrap();
        let fault = remove_tree(parent.path(), Instant::now()).unwrap_err();
        assert_eq!(fault.kind(), io::ErrorKind::TimedOut);
        assert!(parent.path().join("d").exists());
    }

    #[test]
    fn absent_folder_is_not_an_error() {
        let parent = tempfile::tempdir().unwrap();
        remove_tree(&parent.path().join("absent"), soon()).unwrap();
    }
}
