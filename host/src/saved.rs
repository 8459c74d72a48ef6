// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The store of saved machines: those that callers saved under a name, and those of suspended environments.
//!
//! The store knows nothing of machines, only the folders with their files. An entry is written as a draft and becomes
//! visible by one rename, so that it is whole or absent after a crash:
//!
//! ```text
//! <data>/saved/.lock                   held by the server that uses the store
//! <data>/saved/.unfinished-<uuid>/     an entry that is being written or deleted; the next start deletes it
//! <data>/saved/<uuid>/about            the parameters of the environment, with a digest
//! <data>/saved/<uuid>/about.removed    the entry was removed; its files are deleted once they are not in use
//! <data>/saved/<uuid>/about.damaged    the machine was found damaged; the files are kept for the operator
//! <data>/saved/<uuid>/machine/         the machine's files, which have digests of their own
//! ```
//!
//! The name of an entry's folder says nothing about the entry, and never changes. If a new entry replaces another, both
//! exist for a moment, and the one with the higher serial number counts.

mod about;
mod changes;
mod entry_folder;
mod fault;
mod store;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::task::spawn_blocking;
use waggle_shared::disk_reserve::DiskReserve;

pub use self::{
    about::{SavedAbout, SavedEntry},
    fault::{OpenFault, SaveFault, StoreFault, is_disk_full},
};
use self::{
    entry_folder::EntryFolder,
    fault::io_fault,
    store::{Pending, Store},
};
use crate::domain::{principal::Principal, saved::SavedKey};

/// The folder of the store in the data folder.
const FOLDER: &str = "saved";

/// The limits of the store.
#[derive(Clone, Copy, Debug)]
pub struct SavedLimits {
    /// Maximum number of named entries of one owner; 0 disables saving under names.
    pub per_owner: usize,
    /// Maximum space that all named entries occupy together. If there are several callers, each may use half of it.
    pub bytes: u64,
    /// Time after which an entry is removed.
    pub age: Duration,
    /// The space that must remain free on the disk.
    pub reserve: DiskReserve,
}

/// The estimates of an entry before it is written.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// Maximum bytes that the machine's files add to the disk, for the disk's reserve.
    pub bytes: u64,
    /// Number of callers of the server: if there are several, each may use half of the space of named entries.
    pub callers: usize,
}

/// The store of saved machines. Copies share one store.
#[derive(Clone, Debug)]
pub struct SavedMachines {
    /// `None` if another server holds the store.
    store: Option<Arc<Store>>,
}

impl SavedMachines {
    /// Opens the store in the data folder: removes the drafts of dead servers, and reads the entries. Damaged entries
    /// are logged, kept and never served.
    ///
    /// If another server holds the store, the result is a store that refuses each operation with [`StoreFault::Held`].
    ///
    /// # Errors
    /// [`OpenFault`].
    pub async fn open(data_dir: &Path, limits: SavedLimits) -> Result<Self, OpenFault> {
        let path = data_dir.join(FOLDER);
        let folder = path.clone();
        let opened = spawn_blocking(move || Store::open(folder, limits)).await;
        match opened.unwrap_or_else(|source| Err(StoreFault::Lost { source })) {
            Ok(store) => Ok(Self { store: Some(Arc::new(store)) }),
            Err(StoreFault::Held) => {
                tracing::warn!(folder = %path.display(), "{}", StoreFault::Held);
                Ok(Self { store: None })
            }
            Err(source) => Err(OpenFault { path, source }),
        }
    }

    /// Checks whether this server can use the store. If it cannot, [`list`](Self::list), [`find`](Self::find) and
    /// [`suspended`](Self::suspended) return nothing.
    ///
    /// # Errors
    /// [`StoreFault::Held`].
    pub fn check(&self) -> Result<(), StoreFault> {
        self.store().map(drop)
    }

    /// Returns the owner's named entries, oldest first.
    #[must_use]
    pub fn list(&self, owner: &Principal) -> Vec<SavedEntry> {
        self.entries(|entry| entry.owner == *owner && matches!(entry.key, SavedKey::Name(_)))
    }

    /// Returns the suspended environments of all owners, oldest first.
    #[must_use]
    pub fn suspended(&self) -> Vec<SavedEntry> {
        self.entries(|entry| matches!(entry.key, SavedKey::Suspended(_)))
    }

    #[must_use]
    pub fn find(&self, owner: &Principal, key: &SavedKey) -> Option<SavedEntry> {
        self.store.as_ref()?.find(owner, key).map(|found| found.entry)
    }

    /// Creates a draft. Several drafts with one key are independent, and the last one published counts.
    ///
    /// # Errors
    /// [`SaveFault`] if a limit is reached, the disk is low, or the draft cannot be written.
    pub async fn draft(&self, owner: &Principal, key: SavedKey, expected: Expected) -> Result<SavedDraft, SaveFault> {
        let (store, owner) = (Arc::clone(self.store()?), owner.clone());
        blocking(move || {
            let pending = store.expect(&owner, &key, expected)?;
            let folder = store.draft()?;
            let callers = expected.callers;
            Ok(SavedDraft { machine: folder.machine(), folder, store, owner, key, callers, _pending: pending })
        })
        .await
    }

    /// Returns an entry with its files, which remain until the result is dropped, even if the entry is removed or
    /// replaced. Returns `None` if the owner has no entry with this key.
    ///
    /// # Errors
    /// [`StoreFault`].
    #[expect(clippy::unused_async, reason = "the callers need not know that only the index is read")]
    pub async fn open_saved(&self, owner: &Principal, key: &SavedKey) -> Result<Option<OpenSaved>, StoreFault> {
        let found = self.store()?.find(owner, key);
        Ok(found.map(|found| OpenSaved {
            machine: found.folder.machine(),
            entry: found.entry,
            serial: found.serial,
            _folder: found.folder,
        }))
    }

    /// Removes an entry. Returns whether the owner had it.
    ///
    /// # Errors
    /// [`StoreFault`]; the entry then remains.
    pub async fn remove(&self, owner: &Principal, key: &SavedKey) -> Result<bool, StoreFault> {
        let (store, owner, key) = (Arc::clone(self.store()?), owner.clone(), key.clone());
        blocking(move || store.remove(&owner, &key, None).map(|removed| removed.is_some())).await
    }

    /// Removes an entry whose machine's files are damaged. The files are kept for the operator. Returns false if the
    /// entry was removed or replaced since it was opened; another one with its key is not affected.
    ///
    /// # Errors
    /// [`StoreFault`]; the entry then remains.
    pub async fn set_aside(&self, damaged: &OpenSaved) -> Result<bool, StoreFault> {
        let SavedEntry { owner, key, .. } = damaged.entry.clone();
        let (store, serial) = (Arc::clone(self.store()?), damaged.serial);
        blocking(move || store.set_aside(&owner, &key, serial).map(|removed| removed.is_some())).await
    }

    /// Removes the entries, named and suspended ones, that are older than the limit. Returns the removed entries.
    pub async fn expire(&self) -> Vec<SavedEntry> {
        let Some(store) = self.store.clone() else { return Vec::new() };
        let expired: Result<_, StoreFault> = blocking(move || Ok(store.expire(SystemTime::now()))).await;
        expired.unwrap_or_default()
    }

    fn entries(&self, wanted: impl Fn(&SavedEntry) -> bool) -> Vec<SavedEntry> {
        self.store.as_ref().map(|store| store.entries(wanted)).unwrap_or_default()
    }

    fn store(&self) -> Result<&Arc<Store>, StoreFault> {
        self.store.as_ref().ok_or(StoreFault::Held)
    }
}

/// The number of saved and suspended machines in a data folder, and the space that they occupy.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct SavedUsage {
    pub entries: usize,
    pub bytes: u64,
}

impl SavedUsage {
    /// Counts the entries, damaged ones as well, without reading them. Does not need the lock of the store. Blocks.
    ///
    /// # Errors
    /// [`StoreFault`] if the folder cannot be read.
    pub fn of(data_dir: &Path) -> Result<Self, StoreFault> {
        let folder = data_dir.join(FOLDER);
        if !folder.try_exists().map_err(io_fault("find", &folder))? {
            return Ok(Self::default());
        }
        let entries = entry_folder::entries(&folder)?.iter().filter(|path| entry_folder::has_about(path)).count();
        Ok(Self { entries, bytes: entry_folder::usage(&folder)? })
    }
}

/// An unfinished entry. Dropping it removes its files.
#[derive(Debug)]
pub struct SavedDraft {
    folder: EntryFolder,
    machine: PathBuf,
    store: Arc<Store>,
    owner: Principal,
    key: SavedKey,
    callers: usize,
    _pending: Pending,
}

impl SavedDraft {
    /// The empty folder for the machine's files, with mode 0700.
    #[must_use]
    pub fn machine_folder(&self) -> &Path {
        &self.machine
    }

    /// Flushes the files to the disk and makes the draft an entry, which at once replaces the entry with the same key.
    /// The entry survives a crash of the host from the moment when the future is ready. Dropping the future does not
    /// stop this.
    ///
    /// # Errors
    /// [`SaveFault`]; the earlier entry with the same key then remains.
    pub async fn publish(self, about: SavedAbout) -> Result<SavedEntry, SaveFault> {
        blocking(move || self.store.publish(&self.folder, (self.owner, self.key), about, self.callers)).await
    }
}

/// An entry whose files exist until this is dropped.
#[derive(Debug)]
pub struct OpenSaved {
    entry: SavedEntry,
    serial: u64,
    machine: PathBuf,
    _folder: Arc<EntryFolder>,
}

impl OpenSaved {
    #[must_use]
    pub fn entry(&self) -> &SavedEntry {
        &self.entry
    }

    /// The folder with the machine's files.
    #[must_use]
    pub fn machine_folder(&self) -> &Path {
        &self.machine
    }
}

/// Runs file operations on a thread where they may block.
async fn blocking<T: Send + 'static, F: From<StoreFault> + Send + 'static>(
    work: impl FnOnce() -> Result<T, F> + Send + 'static,
) -> Result<T, F> {
    spawn_blocking(work).await.unwrap_or_else(|source| Err(StoreFault::Lost { source }.into()))
}

#[cfg(test)]
mod tests;
