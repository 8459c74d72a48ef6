// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Folders that only this user can change. Their files are opened, executed and deleted without further checks.

use std::{
    fs::{self, DirBuilder, Metadata},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::Path,
};

/// Write permission of the group and of others.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// The reason why a folder is not trusted.
#[derive(Debug, thiserror::Error)]
enum Distrust {
    #[error("not a folder (symbolic links are not followed)")]
    NotAFolder,
    #[error("owned by user {owner}; must be owned by user {user}")]
    Owner { owner: u32, user: u32 },
    #[error("other users can write to it (mode {mode:03o}); run chmod go-w on it")]
    Writable { mode: u32 },
}

/// Creates the folder and its parents with mode 0700. An existing folder must be owned by this user, and others must
/// not be able to write to it.
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
    let distrust = |distrust: Distrust| Err(io::Error::new(io::ErrorKind::PermissionDenied, distrust));
    if !found.is_dir() {
        return distrust(Distrust::NotAFolder);
    }
    if found.uid() != user {
        return distrust(Distrust::Owner { owner: found.uid(), user });
    }
    if found.mode() & WRITABLE_BY_OTHERS != 0 {
        return distrust(Distrust::Writable { mode: found.mode() & 0o777 });
    }
    Ok(())
}

/// Returns whether this user owns a file and others cannot write to it.
#[must_use]
pub fn is_own(found: &Metadata) -> bool {
    found.uid() == rustix::process::geteuid().as_raw() && found.mode() & WRITABLE_BY_OTHERS == 0
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

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
}
