// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Leases on merged images. Each server holds a shared `flock` on the images of its machines. A removal needs the
//! exclusive `flock`, so it fails while any machine uses the image.

use std::{
    collections::BTreeMap,
    fs::{self, File, Metadata, TryLockError},
    io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::SystemTime,
};

use waggle_shared::private_folder;

/// A lease on a file. Prevents the removal of the file until the lease drops.
#[derive(Debug)]
pub struct Lease {
    _file: File,
}

/// A process with leases on an image.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize)]
pub struct LeaseHolder {
    pub pid: u32,
    /// Number of the process's leases on the image.
    pub uses: u32,
}

/// Acquires a lease on a file, and marks the file as used now. Returns `None` if the file does not exist. Waits for a
/// running removal, which is short.
pub(super) fn lease(path: &Path) -> io::Result<Option<Lease>> {
    loop {
        let file = match private_folder::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        file.lock_shared()?;
        // The file may have been removed between open and lock.
        if is_at(&file, path)? {
            file.set_modified(SystemTime::now())?;
            return Ok(Some(Lease { _file: file }));
        }
    }
}

/// Returns whether any process has a lease on a file.
pub(super) fn is_leased(path: &Path) -> bool {
    private_folder::open(path).is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}

/// Removes a file unless it is leased. Returns whether the file was removed.
pub(super) fn remove_unleased(path: &Path) -> io::Result<bool> {
    let file = match private_folder::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(false),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    if !is_at(&file, path)? {
        return Ok(false);
    }
    fs::remove_file(path)?;
    Ok(true)
}

pub(super) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let id = |metadata: Metadata| (metadata.dev(), metadata.ino());
    match fs::metadata(path) {
        Ok(there) => Ok(id(there) == id(file.metadata()?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Marks a file as used now. Failures are ignored, because their only effect is an earlier eviction.
pub(super) fn touch(path: &Path) {
    if let Ok(file) = private_folder::open(path) {
        let _ = file.set_modified(SystemTime::now());
    }
}

/// Returns the processes with leases on a file, except processes that `/proc/locks` hides from this process.
pub(super) fn holders(path: &Path) -> Vec<LeaseHolder> {
    let (Ok(metadata), Ok(locks)) = (fs::metadata(path), fs::read_to_string("/proc/locks")) else { return Vec::new() };
    holders_in(&locks, metadata.ino())
}

/// Returns the holders of `flock` locks on an inode, from the content of `/proc/locks`. Only the inode is compared,
/// because some file systems show different devices in `/proc/locks` and in `stat`.
fn holders_in(locks: &str, inode: u64) -> Vec<LeaseHolder> {
    let mut uses: BTreeMap<u32, u32> = BTreeMap::new();
    for line in locks.lines() {
        let mut words = line.split_whitespace().skip(1);
        if words.next() != Some("FLOCK") {
            continue;
        }
        let (pid, file_id) = (words.nth(2), words.next());
        let found = file_id.and_then(|id| id.rsplit(':').next()).and_then(|inode| inode.parse::<u64>().ok());
        if let (Some(pid), true) = (pid.and_then(|pid| pid.parse().ok()), found == Some(inode)) {
            *uses.entry(pid).or_default() += 1;
        }
    }
    uses.into_iter().map(|(pid, uses)| LeaseHolder { pid, uses }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leased_file_is_not_removed_and_its_holders_are_listed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        assert!(lease(&path).unwrap().is_none());
        fs::write(&path, "x").unwrap();
        let (one, two) = (lease(&path).unwrap().unwrap(), lease(&path).unwrap().unwrap());
        assert!(!remove_unleased(&path).unwrap());
        assert_eq!(holders(&path), [LeaseHolder { pid: std::process::id(), uses: 2 }]);
        drop((one, two));
        assert_eq!(holders(&path), []);
        assert!(remove_unleased(&path).unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn parses_proc_locks() {
        let table = "1: FLOCK  ADVISORY  WRITE 11 fe:00:77 0 EOF\n\
                     1: -> FLOCK  ADVISORY  WRITE 12 fe:00:77 0 EOF\n\
                     2: POSIX  ADVISORY  READ 13 fe:00:77 0 EOF\n\
                     3: FLOCK  ADVISORY  READ 14 fe:00:77 0 EOF\n\
                     4: FLOCK  ADVISORY  READ 14 fe:00:77 0 EOF\n\
                     5: FLOCK  ADVISORY  READ 15 fe:00:78 0 EOF\nnonsense\n";
        assert_eq!(holders_in(table, 77), [LeaseHolder { pid: 11, uses: 1 }, LeaseHolder { pid: 14, uses: 2 }]);
    }
}
