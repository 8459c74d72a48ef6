// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Every change that the store makes to the file system. In tests each change is recorded, and a process can be killed
//! before any of them.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

use waggle_shared::private_folder;

use super::fault::{StoreFault, io_fault};

/// Modes of folders and files: only this user can access them.
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

pub(super) fn create_folder(path: &Path) -> Result<(), StoreFault> {
    before("create", path);
    DirBuilder::new().mode(FOLDER_MODE).create(path).map_err(io_fault("create the folder", path))
}

/// Writes a new file, and flushes its content to the disk.
pub(super) fn write_file(path: &Path, content: &[u8]) -> Result<(), StoreFault> {
    before("write", path);
    let opened = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path);
    let mut file = opened.map_err(io_fault("create", path))?;
    file.write_all(content).map_err(io_fault("write", path))?;
    sync(&file, path)
}

/// Takes away the access of other users, and flushes the content to the disk.
pub(super) fn seal_file(path: &Path) -> Result<(), StoreFault> {
    seal(path, FILE_MODE)
}

/// Takes away the access of other users, and flushes the names in the folder to the disk.
pub(super) fn seal_folder(path: &Path) -> Result<(), StoreFault> {
    seal(path, FOLDER_MODE)
}

fn seal(path: &Path, mode: u32) -> Result<(), StoreFault> {
    let file = private_folder::open(path).map_err(io_fault("open", path))?;
    file.set_permissions(Permissions::from_mode(mode)).map_err(io_fault("set the mode of", path))?;
    sync(&file, path)
}

pub(super) fn sync_folder(path: &Path) -> Result<(), StoreFault> {
    let folder = File::open(path).map_err(io_fault("open", path))?;
    sync(&folder, path)
}

fn sync(file: &File, path: &Path) -> Result<(), StoreFault> {
    before("sync", path);
    file.sync_all().map_err(io_fault("sync", path))
}

/// Renames a file or folder; the caller flushes the new name.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), StoreFault> {
    before("rename", to);
    fs::rename(from, to).map_err(io_fault("rename", from))
}

/// Removes a folder and everything in it, if it exists.
pub(super) fn remove(path: &Path) -> Result<(), StoreFault> {
    before("remove", path);
    match fs::remove_dir_all(path) {
        Err(fault) if fault.kind() != io::ErrorKind::NotFound => Err(io_fault("remove", path)(fault)),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(not(test))]
fn before(_change: &'static str, _path: &Path) {}

#[cfg(test)]
use self::recording::before;

#[cfg(test)]
pub(super) mod recording {
    //! The record of the changes of this process.

    use std::{
        path::{Path, PathBuf},
        sync::Mutex,
    };

    use nix::sys::signal::{Signal, raise};

    static CHANGES: Mutex<Vec<(&str, PathBuf)>> = Mutex::new(Vec::new());
    static UNTIL_KILL: Mutex<Option<u32>> = Mutex::new(None);

    pub(super) fn before(change: &'static str, path: &Path) {
        if let Some(left) = &mut *UNTIL_KILL.lock().unwrap() {
            if *left == 0 {
                raise(Signal::SIGKILL).unwrap();
            }
            *left = left.saturating_sub(1);
        }
        CHANGES.lock().unwrap().push((change, path.to_owned()));
    }

    /// Kills this process before a change, after `changes` other changes.
    pub(crate) fn kill_after(changes: u32) {
        *UNTIL_KILL.lock().unwrap() = Some(changes);
    }

    /// Returns the changes below a folder since the last call, with paths that begin below the folder.
    pub(crate) fn take(folder: &Path) -> Vec<(&'static str, PathBuf)> {
        let below =
            |(change, path): (&'static str, PathBuf)| Some((change, path.strip_prefix(folder).ok()?.to_owned()));
        let mut changes = CHANGES.lock().unwrap();
        let (own, others) = std::mem::take(&mut *changes).into_iter().partition(|(_, path)| path.starts_with(folder));
        *changes = others;
        let own: Vec<_> = own;
        own.into_iter().filter_map(below).collect()
    }
}
