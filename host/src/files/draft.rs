// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Files that are there whole or not at all.
//!
//! A file is written under a name of its own, locked while its writer lives, synced, and then given its final name.
//! What a dead writer left has no lock on it any more, and the next process that opens the folder removes it. Several
//! processes may use one folder: the first to finish a file wins, and the others take it over.

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
/// Held while a draft is made or drafts are swept, so that no draft is seen between its creation and its lock.
const LOCK_NAME: &str = ".lock";

/// A folder of drafts could not be used.
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

/// A folder whose files are made as drafts.
#[derive(Debug)]
pub(crate) struct DraftFolder {
    folder: PathBuf,
}

impl DraftFolder {
    /// Makes the folder if it is not there, and removes what dead processes left in it.
    pub(crate) fn open(folder: PathBuf) -> Result<Self, DraftFault> {
        private_folder::ensure(&folder).map_err(fault("make the folder", &folder))?;
        let folder = Self { folder };
        let swept = folder.sweep()?;
        if swept > 0 {
            tracing::info!(swept, folder = %folder.folder.display(), "removed unfinished files of processes that ended");
        }
        Ok(folder)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.folder
    }

    /// Starts a file; dropping the draft removes it.
    pub(crate) fn draft(&self) -> Result<Draft, DraftFault> {
        let _lock = self.lock()?;
        let path = self.folder.join(format!("{DRAFT_PREFIX}{}", uuid::Uuid::new_v4()));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(fault("make", &path))?;
        let draft = Draft { file, path, published: false };
        draft.file.lock().map_err(fault("lock", &draft.path))?;
        Ok(draft)
    }

    /// Removes what dead processes left in a folder that another version uses, if it is there.
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
                // It must not keep a server from its start.
                Err(fault) => tracing::warn!(error = &fault as &dyn std::error::Error, "an unfinished file stays"),
            }
        }
        Ok(swept)
    }

    /// Held until the file is dropped; it is held for moments only.
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

/// Removes a draft whose writer is gone, and says whether it did.
fn sweep_draft(path: &Path) -> Result<bool, DraftFault> {
    let file = match File::open(path) {
        Ok(file) => file,
        // Its writer has just published or dropped it.
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

/// A file that is being written.
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

    /// Its name until it is published, for programs that want one.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the file its name, after which it survives a crash; a file that is already there stays.
    pub(crate) fn publish(mut self, to: &Path) -> Result<(), DraftFault> {
        self.file.sync_all().map_err(fault("sync", &self.path))?;
        match renameat2(AT_FDCWD, &self.path, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
            Ok(()) => self.published = true,
            // Another process was faster; its file has the same content, and it may be in use.
            Err(Errno::EEXIST) => {}
            // Some file systems lack the flag. Replacing is safe too: who has the old file open keeps it.
            Err(Errno::EINVAL | Errno::ENOSYS) => {
                fs::rename(&self.path, to).map_err(fault("rename", &self.path))?;
                self.published = true;
            }
            Err(error) => return Err(fault("rename", &self.path)(error.into())),
        }
        sync_folder_of(to)
    }

    /// Gives the file its name, in place of a file that has it; whoever looks sees the one or the other.
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
