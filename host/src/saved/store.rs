// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The open store: the index of its entries, and the changes to the entries. All functions block.

use std::{
    collections::HashMap,
    error::Error,
    fs::{File, TryLockError},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant, SystemTime},
};

use uuid::Uuid;
use waggle_shared::{mutex::lock, private_folder};

use super::{
    Expected, SavedLimits,
    about::{SavedAbout, SavedEntry},
    changes,
    entry_folder::{self, EntryFolder, Found, UNFINISHED_PREFIX},
    fault::{SaveFault, StoreFault, io_fault},
};
use crate::domain::{principal::Principal, saved::SavedKey};

/// A server holds the lock on this file while it uses the store.
const LOCK: &str = ".lock";

/// Time to wait for the lock of a server that is just ending, as when a server is restarted.
const LOCK_WAIT: Duration = Duration::from_millis(300);
const LOCK_INTERVAL: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(super) struct Store {
    folder: PathBuf,
    limits: SavedLimits,
    lock: Arc<File>,
    /// Locked during a change of the entries, so that the changes on the disk have the order of those of the index.
    changing: Mutex<()>,
    index: Mutex<Index>,
    /// The bytes that the drafts may still add to the disk.
    pending: Mutex<u64>,
}

/// The bytes that a draft may still add to the disk, until this is dropped.
#[derive(Debug)]
pub(super) struct Pending {
    store: Arc<Store>,
    bytes: u64,
}

impl Drop for Pending {
    fn drop(&mut self) {
        let mut pending = lock(&self.store.pending);
        *pending = pending.saturating_sub(self.bytes);
    }
}

/// The entries. Their number is at most [`SavedLimits::per_owner`] for each owner, and one for each suspended
/// environment.
#[derive(Debug, Default)]
struct Index {
    entries: HashMap<(Principal, SavedKey), Stored>,
    next_serial: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) entry: SavedEntry,
    pub(super) serial: u64,
    pub(super) folder: Arc<EntryFolder>,
}

impl Store {
    /// Locks the folder, removes what is left of drafts and of removed entries, and reads the entries.
    pub(super) fn open(folder: PathBuf, limits: SavedLimits) -> Result<Self, StoreFault> {
        private_folder::ensure(&folder).map_err(io_fault("create the folder", &folder))?;
        // Otherwise a power cut could remove the folder with the first entries.
        changes::sync_folder(folder.parent().unwrap_or(&folder))?;
        let lock = Arc::new(acquire(&folder)?);
        let mut index = Index::default();
        for path in entry_folder::entries(&folder)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(UNFINISHED_PREFIX) {
                tracing::info!(folder = %path.display(), "deleting what a dead server has left unfinished");
                entry_folder::delete(&path);
            } else if Uuid::try_parse(&name).is_ok() && path.is_dir() {
                index.read(EntryFolder::new(path, Arc::clone(&lock)));
            } else if name != LOCK {
                tracing::warn!(path = %path.display(), "a file in the folder of saved environments is none of them");
            }
        }
        Ok(Self { folder, limits, lock, changing: Mutex::new(()), index: Mutex::new(index), pending: Mutex::default() })
    }

    /// Returns the entries that are `wanted`, oldest first.
    pub(super) fn entries(&self, wanted: impl Fn(&SavedEntry) -> bool) -> Vec<SavedEntry> {
        let index = lock(&self.index);
        let mut found: Vec<_> = index.entries.values().filter(|stored| wanted(&stored.entry)).collect();
        found.sort_unstable_by_key(|stored| stored.serial);
        found.into_iter().map(|stored| stored.entry.clone()).collect()
    }

    pub(super) fn find(&self, owner: &Principal, key: &SavedKey) -> Option<Stored> {
        lock(&self.index).entries.get(&(owner.clone(), key.clone())).cloned()
    }

    /// Checks whether the limits and the disk have space for another entry, while nothing has changed yet.
    pub(super) fn expect(
        self: &Arc<Self>,
        owner: &Principal,
        key: &SavedKey,
        expected: Expected,
    ) -> Result<Pending, SaveFault> {
        self.check_count(owner, key)?;
        self.check_bytes(owner, key, None, expected.callers)?;
        let mut pending = lock(&self.pending);
        let bytes = pending.saturating_add(expected.bytes);
        self.limits.reserve.check(&self.folder, bytes).map_err(SaveFault::LowDisk)?;
        *pending = bytes;
        Ok(Pending { store: Arc::clone(self), bytes: expected.bytes })
    }

    /// Creates a draft.
    pub(super) fn draft(&self) -> Result<EntryFolder, SaveFault> {
        Ok(EntryFolder::create_draft(&self.folder, Arc::clone(&self.lock))?)
    }

    /// Makes a draft an entry, which replaces the entry with the same key.
    pub(super) fn publish(
        &self,
        draft: &EntryFolder,
        (owner, key): (Principal, SavedKey),
        about: SavedAbout,
        callers: usize,
    ) -> Result<SavedEntry, SaveFault> {
        draft.seal_machine()?;
        let changing = lock(&self.changing);
        let serial = lock(&self.index).next_serial;
        let mut entry = SavedEntry { key, owner, about, saved_at: SystemTime::now(), bytes: 0 };
        draft.write_about(&entry, serial)?;
        changes::seal_folder(draft.path())?;
        entry.bytes = entry_folder::usage(draft.path())?;
        self.check_count(&entry.owner, &entry.key)?;
        self.check_bytes(&entry.owner, &entry.key, Some(entry.bytes), callers)?;
        // The files are written already; without them, the disk would have less than its reserve.
        self.limits.reserve.check(&self.folder, 0).map_err(SaveFault::LowDisk)?;
        let folder = EntryFolder::new(self.folder.join(Uuid::new_v4().to_string()), Arc::clone(&self.lock));
        changes::rename(draft.path(), folder.path())?;
        if let Err(fault) = changes::sync_folder(&self.folder) {
            // The entry that the caller has just been refused must not appear at the next start.
            folder.mark_removed()?;
            return Err(fault.into());
        }
        let replaced = {
            let mut index = lock(&self.index);
            index.next_serial = serial + 1;
            let stored = Stored { entry: entry.clone(), serial, folder: Arc::new(folder) };
            index.entries.insert((entry.owner.clone(), entry.key.clone()), stored)
        };
        if let Some(replaced) = replaced {
            discard(&replaced.folder);
        }
        drop(changing);
        Ok(entry)
    }

    /// Removes an entry, unless another one has replaced the entry with this `serial`. Returns the removed entry.
    pub(super) fn remove(
        &self,
        owner: &Principal,
        key: &SavedKey,
        serial: Option<u64>,
    ) -> Result<Option<SavedEntry>, StoreFault> {
        self.take(owner, key, serial, EntryFolder::mark_removed)
    }

    /// Removes the entry with this `serial`, but keeps its files.
    pub(super) fn set_aside(
        &self,
        owner: &Principal,
        key: &SavedKey,
        serial: u64,
    ) -> Result<Option<SavedEntry>, StoreFault> {
        self.take(owner, key, Some(serial), |folder| {
            tracing::warn!(folder = %folder.path().display(), "a saved environment is damaged; its files are kept");
            folder.mark_damaged()
        })
    }

    fn take(
        &self,
        owner: &Principal,
        key: &SavedKey,
        serial: Option<u64>,
        mark: impl Fn(&EntryFolder) -> Result<(), StoreFault>,
    ) -> Result<Option<SavedEntry>, StoreFault> {
        let _changing = lock(&self.changing);
        let found = self.find(owner, key).filter(|found| serial.is_none_or(|serial| found.serial == serial));
        let Some(found) = found else { return Ok(None) };
        mark(&found.folder)?;
        lock(&self.index).entries.remove(&(owner.clone(), key.clone()));
        Ok(Some(found.entry))
    }

    /// Removes the entries that are older than the limit. Returns the removed entries.
    pub(super) fn expire(&self, now: SystemTime) -> Vec<SavedEntry> {
        // A clock that was set back makes no entry older.
        let age = |entry: &SavedEntry| now.duration_since(entry.saved_at).unwrap_or_default();
        let index = lock(&self.index);
        let old: Vec<_> =
            index.entries.values().filter(|stored| age(&stored.entry) > self.limits.age).cloned().collect();
        drop(index);
        let remove = |old: Stored| {
            let removed = self.remove(&old.entry.owner, &old.entry.key, Some(old.serial));
            removed.unwrap_or_else(|fault| {
                tracing::warn!(error = &fault as &dyn Error, "failed to remove an old saved environment");
                None
            })
        };
        old.into_iter().filter_map(remove).collect()
    }

    fn check_count(&self, owner: &Principal, key: &SavedKey) -> Result<(), SaveFault> {
        let max = self.limits.per_owner;
        let is_named = |key: &SavedKey| matches!(key, SavedKey::Name(_));
        if !is_named(key) {
            return Ok(());
        }
        if max == 0 {
            return Err(SaveFault::Disabled);
        }
        let index = lock(&self.index);
        let others = index.entries.keys().filter(|(other, name)| other == owner && is_named(name) && name != key);
        if others.count() >= max { Err(SaveFault::TooMany { max }) } else { Ok(()) }
    }

    /// Checks the space of named entries, of one owner and of all. `bytes` is `None` before the new entry is written.
    /// Suspended environments occupy the place of running ones, whose number and size have their own limits.
    fn check_bytes(
        &self,
        owner: &Principal,
        key: &SavedKey,
        bytes: Option<u64>,
        callers: usize,
    ) -> Result<(), SaveFault> {
        if !matches!(key, SavedKey::Name(_)) {
            return Ok(());
        }
        let max_bytes = self.limits.bytes;
        let share_bytes = if callers > 1 { max_bytes.div_ceil(2) } else { max_bytes };
        let (mut own, mut all) = (0_u64, 0_u64);
        for Stored { entry, .. } in lock(&self.index).entries.values() {
            if !matches!(entry.key, SavedKey::Name(_)) || (&entry.owner, &entry.key) == (owner, key) {
                continue;
            }
            all = all.saturating_add(entry.bytes);
            own = own.saturating_add(if entry.owner == *owner { entry.bytes } else { 0 });
        }
        // Each entry occupies some space.
        let fits = |used: u64, max| used.saturating_add(bytes.unwrap_or(1)) <= max;
        // The smaller limit comes first: a caller cannot remove the entries of others.
        if !fits(own, share_bytes) {
            return Err(SaveFault::ShareTooLarge { bytes, share_bytes });
        }
        if fits(all, max_bytes) { Ok(()) } else { Err(SaveFault::TooLarge { bytes, max_bytes }) }
    }
}

impl Index {
    /// Adds an entry that was found on the disk. Of two entries with one key, the later one replaced the earlier.
    fn read(&mut self, folder: EntryFolder) {
        let path = folder.path().display().to_string();
        let (entry, serial) = match folder.read() {
            Ok(Found::Entry(entry, serial)) => (*entry, serial),
            Ok(Found::Removed) => return folder.delete_later(),
            Ok(Found::Newer(fault)) => {
                tracing::warn!(
                    path,
                    error = &fault as &dyn Error,
                    "a saved environment needs a newer version of waggle"
                );
                return;
            }
            Ok(Found::Damaged(fault)) => {
                let error: &dyn Error = &fault;
                tracing::warn!(path, error, "a saved environment is damaged; it is kept but not used");
                return;
            }
            Ok(Found::DamagedMachine) => {
                tracing::warn!(path, "a saved environment is damaged or incomplete; it is kept but not used");
                return;
            }
            Err(fault) => {
                let error: &dyn Error = &fault;
                tracing::warn!(path, error, "failed to read a saved environment; it is kept but not used");
                return;
            }
        };
        self.next_serial = self.next_serial.max(serial.saturating_add(1));
        let key = (entry.owner.clone(), entry.key.clone());
        let stored = Stored { entry, serial, folder: Arc::new(folder) };
        let replaced = match self.entries.get(&key) {
            Some(other) if other.serial > serial => Some(stored),
            _ => self.entries.insert(key, stored),
        };
        if let Some(replaced) = replaced {
            discard(&replaced.folder);
        }
    }
}

/// Removes an entry that another one has replaced. If this fails, the next start tries again.
fn discard(replaced: &EntryFolder) {
    if let Err(fault) = replaced.mark_removed() {
        tracing::warn!(error = &fault as &dyn Error, "failed to remove a saved environment that was replaced");
    }
}

/// Locks the store for this server.
fn acquire(folder: &Path) -> Result<File, StoreFault> {
    let path = folder.join(LOCK);
    let file = private_folder::open_lock(&path).map_err(io_fault("open", &path))?;
    let until = Instant::now() + LOCK_WAIT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < until => thread::sleep(LOCK_INTERVAL),
            Err(TryLockError::WouldBlock) => return Err(StoreFault::Held),
            Err(TryLockError::Error(source)) => return Err(io_fault("lock", &path)(source)),
        }
    }
}
