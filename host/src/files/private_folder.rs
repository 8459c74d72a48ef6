// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Folders that nobody but this user can change: what lies in them is opened, executed from and deleted without a
//! further look.

use std::{
    fs::{self, DirBuilder, Metadata},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::Path,
};

/// Write permission of the group and of everyone else.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Why a folder cannot be trusted.
#[derive(Debug, thiserror::Error)]
enum Distrust {
    #[error("it is not a folder (symbolic links are not followed)")]
    NotAFolder,
    #[error("it belongs to user {owner}, and this is user {user}")]
    Owner { owner: u32, user: u32 },
    #[error("other users can write to it (mode {mode:03o}); chmod go-w it")]
    Writable { mode: u32 },
}

/// Makes the folder, and those above it, for this user's eyes only. One that is there already must be this user's, and
/// others must not be able to write to it.
///
/// # Errors
/// What the system says, or why the folder cannot be trusted.
pub(crate) fn ensure(path: &Path) -> io::Result<()> {
    // A link that points nowhere is not made whole.
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

/// Whether a file is this user's, and nobody else can write to it.
pub(crate) fn is_own(found: &Metadata) -> bool {
    found.uid() == rustix::process::geteuid().as_raw() && found.mode() & WRITABLE_BY_OTHERS == 0
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn a_folder_is_made_private_and_taken_again() {
        let above = tempfile::tempdir().unwrap();
        let path = above.path().join("a/b");
        ensure(&path).unwrap();
        ensure(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_folder_that_others_can_write_to_or_a_link_is_refused() {
        let above = tempfile::tempdir().unwrap();
        let open = above.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o770)).unwrap();
        assert_eq!(ensure(&open).unwrap_err().to_string(), "other users can write to it (mode 770); chmod go-w it");
        let link = above.path().join("link");
        symlink(above.path(), &link).unwrap();
        let refusal = "it is not a folder (symbolic links are not followed)";
        assert_eq!(ensure(&link).unwrap_err().to_string(), refusal);
    }
}
