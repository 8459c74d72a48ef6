// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Root's home. It is closed to other users, except for the tools in it that the image puts on its search path.
//!
//! Images whose commands run as root often have tools there, such as `/root/.local/bin` or `/root/.cargo/bin`. If the
//! search path contains a folder below the home, other users may pass through the home and the folders on the way to
//! that folder. They cannot list these folders, but they can read the files there whose names they know and whose
//! modes allow it.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::{Component, Path, PathBuf},
};

use super::folder::make_folder;
use crate::step::{StepFault, WithStep};

const ROOT_HOME: &str = "/root";

/// The permission of all users to pass through a folder.
const PASS: u32 = 0o111;

/// Creates root's home, and closes it except for the folders of the search path `path`.
pub(super) fn set_up(path: &str) -> Result<(), StepFault> {
    make_folder(ROOT_HOME)?;
    let closed = fs::set_permissions(ROOT_HOME, Permissions::from_mode(0o700));
    closed.step(|| format!("set the mode of {ROOT_HOME}"))?;
    for folder in path.split(':').filter_map(below_root_home) {
        // A missing folder, or one that leads elsewhere, needs nothing.
        let _opened = open(&folder);
    }
    Ok(())
}

/// Returns the folder's path relative to root's home; `None` if the folder is not below it.
fn below_root_home(folder: &str) -> Option<PathBuf> {
    let below = Path::new(folder).strip_prefix(ROOT_HOME).ok()?;
    let is_plain = below.components().all(|component| matches!(component, Component::Normal(_)));
    (is_plain && !below.as_os_str().is_empty()).then(|| below.to_path_buf())
}

fn open(below: &Path) -> io::Result<()> {
    fs::metadata(Path::new(ROOT_HOME).join(below))?;
    let mut folder = PathBuf::from(ROOT_HOME);
    for name in [Path::new(".")].into_iter().chain(below.iter().map(Path::new)) {
        folder.push(name);
        let meta = fs::symlink_metadata(&folder)?;
        if !meta.is_dir() {
            break;
        }
        let mode = meta.permissions().mode() & 0o7777;
        if mode & PASS != PASS {
            fs::set_permissions(&folder, Permissions::from_mode(mode | PASS))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_below_the_home_are_opened() {
        assert_eq!(below_root_home("/root/.cargo/bin"), Some(".cargo/bin".into()));
        for other in ["/root", "/root/", "/rooted/bin", "/usr/bin", "/root/../etc", "root/bin", ""] {
            assert_eq!(below_root_home(other), None, "{other}");
        }
    }
}
