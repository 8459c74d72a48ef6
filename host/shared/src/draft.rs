// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Files that appear only once they are complete.
//!
//! A file is first a draft: it has a temporary name, and its writer holds a lock on it. A complete draft is synced and
//! renamed. An unlocked draft belongs to a dead writer, so the next process that opens the folder removes the draft.
//! Several processes may share a folder: the first to complete a file wins, and the others use that file.

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

use crate::private_folder;

const DRAFT_PREFIX: &str = ".draft-";
/// A file that a process locks while it creates a draft or removes the drafts of dead processes. Without this lock, a
/// process could remove a new draft that its writer has not locked yet.
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
pub struct DraftFolder {
    folder: PathBuf,
}

impl DraftFolder {
    /// Creates the folder if absent, and removes the drafts of dead processes.
    ///
    /// # Errors
    /// The folder cannot be created, locked or listed, or others can write to it.
    pub fn open(folder: PathBuf) -> Result<Self, DraftFault> {
        private_folder::ensure(&folder).map_err(fault("create the folder", &folder))?;
        let folder = Self { folder };
        let swept = folder.sweep()?;
        if swept > 0 {
            tracing::info!(swept, folder = %folder.folder.display(), "removed unfinished files of dead processes");
        }
        Ok(folder)
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// Creates a draft.
    ///
    /// # Errors
    /// The file cannot be created or locked.
    pub fn draft(&self) -> Result<Draft, DraftFault> {
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

    /// Removes the drafts of dead processes from a folder that another version of this program uses.
    ///
    /// # Errors
    /// The folder cannot be locked or listed.
    pub fn sweep_other(folder: PathBuf) -> Result<(), DraftFault> {
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
                // An unfinished file must not prevent the start of a server.
                Err(fault) => {
                    tracing::warn!(error = &fault as &dyn std::error::Error, "failed to remove an unfinished file")
                }
            }
        }
        Ok(swept)
    }

    /// Locks the folder until the returned file is dropped. All callers hold the lock only briefly.
    fn lock(&self) -> Result<File, DraftFault> {
        let path = self.folder.join(LOCK_NAME);
        let file = private_folder::open_lock(&path).map_err(fault("open", &path))?;
        file.lock().map_err(fault("lock", &path))?;
        Ok(file)
    }
}

/// Removes a draft if its writer is dead. Returns whether the draft was removed.
fn sweep_draft(path: &Path) -> Result<bool, DraftFault> {
    let file = match private_folder::open(path) {
        Ok(file) => file,
        // The writer has just published or dropped the draft.
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

/// A file that is being written. Dropping the draft removes the file unless it was published.
#[derive(Debug)]
pub struct Draft {
    file: File,
    path: PathBuf,
    published: bool,
}

impl Draft {
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The temporary path, for programs that write the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Syncs the file and renames it to `to`. An existing file at `to` stays.
    ///
    /// # Errors
    /// The file cannot be synced or renamed.
    pub fn publish(mut self, to: &Path) -> Result<(), DraftFault> {
        self.file.sync_all().map_err(fault("sync", &self.path))?;
        match renameat2(AT_FDCWD, &self.path, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
            Ok(()) => self.published = true,
            // Another process was faster. Its file has the same content, and may be in use.
            Err(Errno::EEXIST) => {}
            // Some file systems do not support the flag. Replacing the file is safe too: processes that have opened the
            // old file can still read it.
            Err(Errno::EINVAL | Errno::ENOSYS) => {
                fs::rename(&self.path, to).map_err(fault("rename", &self.path))?;
                self.published = true;
            }
            Err(error) => return Err(fault("rename", &self.path)(error.into())),
        }
        sync_folder_of(to)
    }

    /// Syncs the file and renames it to `to`. Atomically replaces an existing file.
    ///
    /// # Errors
    /// The file cannot be synced or renamed.
    pub fn replace(mut self, to: &Path) -> Result<(), DraftFault> {
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
            // The next process that opens the folder removes the file.
            tracing::warn!(path = %self.path.display(), %error, "failed to remove an unfinished file");
        }
    }
}
