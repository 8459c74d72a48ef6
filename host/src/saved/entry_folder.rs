// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The folder of one saved machine: its about-file, and the folder with the machine's files.
//!
//! The path of the folder never changes, so that its files can be used while the entry is replaced or removed. The
//! about-file of a removed entry gets a new name, and the files are deleted when they are no longer in use.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::runtime::Handle;
use uuid::Uuid;
use waggle_shared::private_folder;

use super::{
    about::{self, ABOUT_BYTES_MAX, AboutFault, SavedEntry},
    changes,
    fault::{SaveFault, StoreFault, io_fault},
};

const ABOUT: &str = "about";
/// New names of the about-file of an entry that was removed, and of one whose machine is damaged.
const REMOVED: &str = "about.removed";
const DAMAGED: &str = "about.damaged";
/// The folder with the machine's files.
const MACHINE: &str = "machine";

/// The names of drafts, and of folders whose deletion has begun, begin with this.
pub(super) const UNFINISHED_PREFIX: &str = ".unfinished-";

/// Maximum number of a machine's files and folders. A snapshot has about ten.
const FILES_MAX: u32 = 256;
/// Maximum depth of a machine's folders.
const DEPTH_MAX: u32 = 4;
/// Bytes of a block in the metadata of a file (stat(2)).
const BLOCK_BYTES: u64 = 512;

/// The folder of an entry or of a draft, in use until the last copy of its `Arc` drops.
#[derive(Debug)]
pub(super) struct EntryFolder {
    path: PathBuf,
    is_unwanted: AtomicBool,
    /// The lock of the store. No other server opens the store while a folder is in use.
    _lock: Arc<File>,
}

/// An entry that was found on the disk.
#[derive(Debug)]
pub(super) enum Found {
    Entry(Box<SavedEntry>, u64),
    /// The entry was removed, and only its files are left.
    Removed,
    /// A newer program has written the entry.
    Newer(AboutFault),
    Damaged(AboutFault),
    DamagedMachine,
}

impl EntryFolder {
    pub(super) fn new(path: PathBuf, lock: Arc<File>) -> Self {
        Self { path, is_unwanted: AtomicBool::new(false), _lock: lock }
    }

    /// Creates a draft in the folder of the store. The draft is deleted when it is no longer in use.
    pub(super) fn create_draft(store: &Path, lock: Arc<File>) -> Result<Self, StoreFault> {
        let path = store.join(format!("{UNFINISHED_PREFIX}{}", Uuid::new_v4()));
        changes::create_folder(&path)?;
        let folder = Self { path, is_unwanted: AtomicBool::new(true), _lock: lock };
        changes::create_folder(&folder.machine())?;
        Ok(folder)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn machine(&self) -> PathBuf {
        self.path.join(MACHINE)
    }

    /// Deletes the folder when it is no longer in use.
    pub(super) fn delete_later(&self) {
        self.is_unwanted.store(true, Ordering::Relaxed);
    }

    /// Marks the entry as removed, and deletes the folder when it is no longer in use.
    pub(super) fn mark_removed(&self) -> Result<(), StoreFault> {
        self.rename_about(REMOVED)?;
        self.delete_later();
        Ok(())
    }

    /// Marks the entry as damaged.
    pub(super) fn mark_damaged(&self) -> Result<(), StoreFault> {
        self.rename_about(DAMAGED)
    }

    fn rename_about(&self, name: &str) -> Result<(), StoreFault> {
        let (about, renamed) = (self.path.join(ABOUT), self.path.join(name));
        changes::rename(&about, &renamed)?;
        changes::sync_folder(&self.path).inspect_err(|_| {
            // The entry remains, and must also be there at the next start.
            let _ = changes::rename(&renamed, &about);
        })
    }

    pub(super) fn write_about(&self, entry: &SavedEntry, serial: u64) -> Result<(), SaveFault> {
        Ok(changes::write_file(&self.path.join(ABOUT), &about::encode(entry, serial)?)?)
    }

    /// Checks and flushes the machine's files, which the machine's own process may have written.
    pub(super) fn seal_machine(&self) -> Result<(), SaveFault> {
        seal(&self.machine(), 0, &mut 0)
    }

    /// Reads the entry.
    pub(super) fn read(&self) -> Result<Found, StoreFault> {
        let path = self.path.join(ABOUT);
        let file = match private_folder::open(&path) {
            Ok(file) => file,
            Err(fault) if fault.kind() == io::ErrorKind::NotFound => {
                let was_removed = self.path.join(REMOVED).try_exists().map_err(io_fault("find", &path))?;
                return Ok(if was_removed { Found::Removed } else { Found::DamagedMachine });
            }
            Err(source) => return Err(io_fault("open", &path)(source)),
        };
        let mut content = Vec::new();
        let read = file.take(ABOUT_BYTES_MAX as u64 + 1).read_to_end(&mut content);
        read.map_err(io_fault("read", &path))?;
        match about::decode(&content) {
            Ok(_) if !fs::symlink_metadata(self.machine()).is_ok_and(|found| found.is_dir()) => {
                Ok(Found::DamagedMachine)
            }
            Ok((entry, serial)) => {
                Ok(Found::Entry(Box::new(SavedEntry { bytes: usage(&self.path)?, ..entry }), serial))
            }
            Err(fault @ AboutFault::Newer { .. }) => Ok(Found::Newer(fault)),
            Err(fault) => Ok(Found::Damaged(fault)),
        }
    }
}

impl Drop for EntryFolder {
    fn drop(&mut self) {
        if !self.is_unwanted.load(Ordering::Relaxed) {
            return;
        }
        let path = std::mem::take(&mut self.path);
        // Files of gigabytes take a while. A folder whose deletion did not begin before the server's end is deleted at
        // the next start.
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || delete(&path))),
            Err(_) => delete(&path),
        }
    }
}

/// Deletes the files of a removed entry or of a draft. A folder whose deletion has begun has another name, because it
/// may have lost the mark of a removed entry.
pub(super) fn delete(path: &Path) {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let renamed = if name.starts_with(UNFINISHED_PREFIX) {
        Ok(path.to_owned())
    } else {
        let to = path.with_file_name(format!("{UNFINISHED_PREFIX}{name}"));
        changes::rename(path, &to).map(|()| to)
    };
    if let Err(fault) = renamed.and_then(|path| changes::remove(&path)) {
        tracing::warn!(
            error = &fault as &dyn std::error::Error,
            "failed to delete the files of a saved environment; the next start tries again"
        );
    }
}

/// Whether a folder is that of an entry.
pub(super) fn has_about(path: &Path) -> bool {
    path.join(ABOUT).is_file()
}

/// Returns the space that a folder and its files occupy on the disk. Files that are removed meanwhile do not count.
pub(super) fn usage(path: &Path) -> Result<u64, StoreFault> {
    let found = match fs::symlink_metadata(path) {
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => return Ok(0),
        found => found.map_err(io_fault("examine", path))?,
    };
    let mut bytes = found.blocks().saturating_mul(BLOCK_BYTES);
    if found.is_dir() {
        for inner in entries(path).or_else(|fault| if path.exists() { Err(fault) } else { Ok(Vec::new()) })? {
            bytes = bytes.saturating_add(usage(&inner)?);
        }
    }
    Ok(bytes)
}

fn seal(path: &Path, depth: u32, files: &mut u32) -> Result<(), SaveFault> {
    let invalid = |reason| Err(SaveFault::Files { reason, path: path.to_owned() });
    *files += 1;
    if *files > FILES_MAX {
        return invalid("there are too many");
    }
    // No program changes the kind of a file later: the machine's process can no longer write to the folder.
    let kind = fs::symlink_metadata(path).map_err(io_fault("examine", path))?.file_type();
    if kind.is_file() {
        return Ok(changes::seal_file(path)?);
    }
    if !kind.is_dir() {
        return invalid("one is neither a file nor a folder");
    }
    if depth > DEPTH_MAX {
        return invalid("the folders are too deep");
    }
    for inner in entries(path)? {
        seal(&inner, depth + 1, files)?;
    }
    Ok(changes::seal_folder(path)?)
}

pub(super) fn entries(path: &Path) -> Result<Vec<PathBuf>, StoreFault> {
    let list = || fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect();
    let listed: io::Result<_> = list();
    listed.map_err(io_fault("list", path))
}
