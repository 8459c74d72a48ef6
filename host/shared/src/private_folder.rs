// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Folders that only this user can change. Their files are opened, executed and deleted without further checks.

use std::{
    fs::{self, DirBuilder, File, Metadata, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, absolute},
};

use nix::{errno::Errno, fcntl::OFlag};

/// Write permission of the group and of others.
const WRITABLE_BY_OTHERS: u32 = 0o022;
const WRITABLE_BY_GROUP: u32 = 0o020;
const WRITABLE_BY_ALL: u32 = 0o002;
/// In a folder with this bit, such as /tmp, only the owner of an entry can rename or remove it.
const STICKY: u32 = 0o1000;

/// The user that the kernel shows instead of users who do not exist in a user namespace.
const UNMAPPED: u32 = 65534;
/// The map of users outside of user namespaces.
const ALL_USERS: [&str; 3] = ["0", "0", "4294967295"];

/// The reason why a folder is not trusted.
#[derive(Debug, thiserror::Error)]
enum Distrust {
    #[error("not a folder (symbolic links are not followed)")]
    NotAFolder,
    #[error("owned by user {owner}; must be owned by user {user}")]
    Owner { owner: u32, user: u32 },
    #[error("other users can write to it (mode {mode:03o}); run chmod go-w on it")]
    Writable { mode: u32 },
    #[error("a symbolic link (symbolic links are not followed)")]
    Link,
    #[error(
        "user {owner} owns {path}, which is above it, and could replace it; {path} must be owned by root or user \
         {user}, so choose another folder"
    )]
    OwnerAbove { path: String, owner: u32, user: u32 },
    #[error(
        "other users can write to {path}, which is above it (mode {mode:03o}), and could replace it; run chmod go-w \
         {path}, or chmod +t {path}"
    )]
    WritableAbove { path: String, mode: u32 },
}

/// Creates the folder and its parents with mode 0700. An existing folder must be owned by this user, and others must
/// not be able to write to it. Nobody but this user and root may be able to replace the folders above it.
///
/// # Errors
/// The folder cannot be created or is not trusted.
pub fn ensure(path: &Path) -> io::Result<()> {
    // `create` fails for a dangling link instead of creating the link's target. The check below rejects the link.
    if let Err(fault) = DirBuilder::new().mode(0o700).recursive(true).create(path)
        && fault.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(fault);
    }
    let found = fs::symlink_metadata(path)?;
    let user = rustix::process::geteuid().as_raw();
    if !found.is_dir() {
        return distrust(Distrust::NotAFolder);
    }
    if found.uid() != user {
        return distrust(Distrust::Owner { owner: found.uid(), user });
    }
    if found.mode() & WRITABLE_BY_OTHERS != 0 {
        return distrust(Distrust::Writable { mode: found.mode() & 0o777 });
    }
    // Both the names in the path and the folders that they lead to.
    let (named, found) = (absolute(path)?, path.canonicalize()?);
    let above = named.ancestors().skip(1).chain(found.ancestors().skip(1));
    above.into_iter().try_for_each(|folder| check_above(folder, user))
}

/// Checks whether only this user and root can replace the entries of a folder.
fn check_above(folder: &Path, user: u32) -> io::Result<()> {
    let path = || folder.display().to_string();
    // The owner of a link can lead it elsewhere.
    for found in [fs::symlink_metadata(folder)?, fs::metadata(folder)?] {
        let (owner, mode) = (found.uid(), found.mode());
        if owner != user && owner != 0 && !is_unmapped(owner) {
            return distrust(Distrust::OwnerAbove { path: path(), owner, user });
        }
        // A group with the number of the owner is the owner's own.
        let by_group = mode & WRITABLE_BY_GROUP != 0 && found.gid() != owner;
        if !found.is_symlink() && mode & STICKY == 0 && (by_group || mode & WRITABLE_BY_ALL != 0) {
            return distrust(Distrust::WritableAbove { path: path(), mode: mode & 0o7777 });
        }
    }
    Ok(())
}

/// Whether an owner is unknown because this process is in a user namespace, where even root may be unknown.
fn is_unmapped(owner: u32) -> bool {
    let map = || fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    owner == UNMAPPED && map().split_whitespace().ne(ALL_USERS)
}

fn distrust<T>(distrust: Distrust) -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::PermissionDenied, distrust))
}

/// Opens a file for reading. Neither follows a symbolic link nor waits for the writer of a pipe.
///
/// # Errors
/// The file cannot be opened, or is a symbolic link.
pub fn open(path: &Path) -> io::Result<File> {
    open_with(OpenOptions::new().read(true), path)
}

/// Opens a file that is only locked, and creates it if absent. Does not follow a symbolic link.
///
/// # Errors
/// The file cannot be opened or created, or is a symbolic link.
pub fn open_lock(path: &Path) -> io::Result<File> {
    open_with(OpenOptions::new().create(true).truncate(false).write(true).mode(0o600), path)
}

fn open_with(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    // std adds O_CLOEXEC.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    options.custom_flags(flags.bits()).open(path).or_else(|fault| match fault.raw_os_error() {
        Some(number) if number == Errno::ELOOP as i32 => distrust(Distrust::Link),
        _ => Err(fault),
    })
}

/// Returns whether this user owns a file and others cannot write to it.
#[must_use]
pub fn is_own(found: &Metadata) -> bool {
    found.uid() == rustix::process::geteuid().as_raw() && found.mode() & WRITABLE_BY_OTHERS == 0
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    use super::*;

    #[test]
    fn creates_a_private_folder_and_accepts_it_again() {
        let above = tempfile::tempdir().unwrap();
        let path = above.path().join("a/b");
        ensure(&path).unwrap();
        ensure(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn rejects_writable_folders_and_links() {
        let above = tempfile::tempdir().unwrap();
        let open = above.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o770)).unwrap();
        let expected = "other users can write to it (mode 770); run chmod go-w on it";
        assert_eq!(ensure(&open).unwrap_err().to_string(), expected);
        let link = above.path().join("link");
        symlink(above.path(), &link).unwrap();
        let expected = "not a folder (symbolic links are not followed)";
        assert_eq!(ensure(&link).unwrap_err().to_string(), expected);
    }

    #[test]
    fn rejects_folders_that_others_can_replace() {
        let outer = tempfile::tempdir().unwrap();
        let (above, path) = (outer.path().join("above"), outer.path().join("above/a/b"));
        ensure(&path).unwrap();
        let set = |mode| fs::set_permissions(&above, fs::Permissions::from_mode(mode)).unwrap();
        set(0o777);
        let expected = format!(
            "other users can write to {0}, which is above it (mode 777), and could replace it; run chmod go-w {0}, or \
             chmod +t {0}",
            above.display()
        );
        assert_eq!(ensure(&path).unwrap_err().to_string(), expected);
        // A path that leads there through a link is as bad.
        let link = outer.path().join("link");
        symlink(above.join("a"), &link).unwrap();
        assert_eq!(ensure(&link.join("b")).unwrap_err().to_string(), expected);
        for mode in [0o1777, 0o755, 0o700] {
            set(mode);
            ensure(&path).unwrap();
        }
        // Only root can give a folder away.
        if rustix::process::geteuid().is_root() {
            chown(&above, Some(12_345), None).unwrap();
            let fault = ensure(&path).unwrap_err().to_string();
            assert!(fault.starts_with(&format!("user 12345 owns {}, which is above it", above.display())), "{fault}");
        }
    }

    #[test]
    fn files_are_not_opened_through_links() {
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("target"), folder.path().join("link"));
        symlink(&target, &link).unwrap();
        assert_eq!(open_lock(&link).unwrap_err().to_string(), "a symbolic link (symbolic links are not followed)");
        assert!(!target.exists());
        open_lock(&target).unwrap();
        open_lock(&target).unwrap();
        open(&target).unwrap();
        assert_eq!(open(&link).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
