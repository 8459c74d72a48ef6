// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Files that appear only once they are complete.
//!
//! A file is written under a temporary name, locked while its writer lives, synced, and then renamed. The draft of a
//! dead writer is no longer locked, so the next process that opens the folder removes it. Several processes may share a
//! folder: the first to complete a file wins, and the others use that file.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, RenameFlags, renameat2},
};

use crate::files::private_folder;

const DRAFT_PREFIX: &str = ".draft-";
/// Locked to create a draft or to remove dead ones, so that a draft is never seen between its creation and its lock.
const LOCK_NAME: &str = ".lock";

/// An operation in a folder of drafts failed.
#[derive(Debug, thiserror::Error)]
#[error("failed to {operation} {path}")]
pub struct DraftFault {
    operation: &'static str,
    path: String,
    source: io::Error,
}

fn fault(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DraftFault {
    let path = path.display().to_string();
    move |source| DraftFault { operation, path, source }
}

/// A folder of files that are written as drafts.
#[derive(Debug)]
pub(crate) struct DraftFolder {
    folder: PathBuf,
}

impl DraftFolder {
    /// Creates the folder if absent, and removes the drafts of dead processes.
    pub(crate) fn open(folder: PathBuf) -> Result<Self, DraftFault> {
        private_folder::ensure(&folder).map_err(fault("create the folder", &folder))?;
        let folder = Self { folder };
        let swept = folder.sweep()?;
        if swept > 0 {
            tracing::info!(swept, folder = %folder.folder.display(), "removed unfinished files of dead processes");
        }
        Ok(folder)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.folder
    }

    /// Creates a draft; dropping it removes the file.
    pub(crate) fn draft(&self) -> Result<Draft, DraftFault> {
        let _lock = self.lock()?;
        let path = self.folder.join(format!("{DRAFT_PREFIX}{}", uuid::Uuid::new_v4()));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(fault("create", &path))?;
        let draft = Draft { file, path, published: false };
        draft.file.lock().map_err(fault("lock", &draft.path))?;
        Ok(draft)
    }

    /// Removes the drafts of dead processes from a folder of another version.
    pub(crate) fn sweep_other(folder: PathBuf) -> Result<(), DraftFault> {
        Self { folder }.sweep().map(drop)
    }

    fn sweep(&self) -> Result<u32, DraftFault> {
        let _lock = self.lock()?;
        let list_fault = || fault("list", &self.folder);
        let mut swept = 0;
        for entry in fs::read_dir(&self.folder).map_err(list_fault())? {
            let entry = entry.map_err(list_fault())?;
            if !entry.file_name().as_encoded_bytes().starts_with(DRAFT_PREFIX.as_bytes()) {
                continue;
            }
            match sweep_draft(&entry.path()) {
                Ok(removed) => swept += u32::from(removed),
                // A server must start nevertheless.
                Err(fault) => {
                    tracing::warn!(error = &fault as &dyn std::error::Error, "failed to remove an unfinished file")
                }
            }
        }
        Ok(swept)
    }

    /// Returns a lock that is held until it drops. All holders are short.
    fn lock(&self) -> Result<File, DraftFault> {
        let path = self.folder.join(LOCK_NAME);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(fault("open", &path))?;
        file.lock().map_err(fault("lock", &path))?;
        Ok(file)
    }
}

/// Removes a draft whose writer is dead, and returns whether it did.
fn sweep_draft(path: &Path) -> Result<bool, DraftFault> {
    let file = match File::open(path) {
        Ok(file) => file,
        // Its writer published or dropped it just now.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(fault("open", path)(error)),
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(false),
        Err(TryLockError::Error(error)) => return Err(fault("lock", path)(error)),
    }
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(fault("remove", path)(error)),
    }
}

/// A file that is being written; dropping it removes the file.
#[derive(Debug)]
pub(crate) struct Draft {
    file: File,
    path: PathBuf,
    published: bool,
}

impl Draft {
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// The temporary path, for programs that write the file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Renames the file to its final name and syncs it; an existing file is kept.
    pub(crate) fn publish(mut self, to: &Path) -> Result<(), DraftFault> {
        self.file.sync_all().map_err(fault("sync", &self.path))?;
        match renameat2(AT_FDCWD, &self.path, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
            Ok(()) => self.published = true,
            // Another process was faster. Its file has the same content, and may be in use.
            Err(Errno::EEXIST) => {}
            // Some file systems lack the flag. Replacing is safe too: processes that have the old file open keep it.
            Err(Errno::EINVAL | Errno::ENOSYS) => {
                fs::rename(&self.path, to).map_err(fault("rename", &self.path))?;
                self.published = true;
            }
            Err(error) => return Err(fault("rename", &self.path)(error.into())),
        }
        sync_folder_of(to)
    }

    /// Renames the file to its final name and syncs it; atomically replaces an existing file.
    pub(crate) fn replace(mut self, to: &Path) -> Result<(), DraftFault> {
        self.file.sync_all().map_err(fault("sync", &self.path))?;
        fs::rename(&self.path, to).map_err(fault("rename", &self.path))?;
        self.published = true;
        sync_folder_of(to)
    }
}

fn sync_folder_of(path: &Path) -> Result<(), DraftFault> {
    let folder = path.parent().unwrap_or(path);
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(fault("sync", folder))
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published
            && let Err(error) = fs::remove_file(&self.path)
        {
            // The next process to open the folder removes it.
            tracing::warn!(path = %self.path.display(), %error, "failed to remove an unfinished file");
        }
    }
}
