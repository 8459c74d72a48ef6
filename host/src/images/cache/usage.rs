// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Who uses what: a merged image is under a shared lock while a machine has it, whichever server the machine belongs
//! to. Who removes it takes the lock for itself, and so never comes between.

use std::{
    collections::BTreeMap,
    fs::{self, File, Metadata, TryLockError},
    io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::SystemTime,
};

/// A file that stays where it is for as long as this is held.
#[derive(Debug)]
pub struct Lease {
    _file: File,
}

/// A process that uses an image.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize)]
pub struct User {
    /// Its process id.
    pub pid: u32,
    /// How often it uses it: once for each machine.
    pub uses: u32,
}

/// Takes a lease on a file, and notes that it was used now; nothing if it is not there. Waits for whoever has it for
/// itself, which is for moments.
pub(super) fn lease(path: &Path) -> io::Result<Option<Lease>> {
    loop {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        file.lock_shared()?;
        // It may have been removed between the two.
        if is_at(&file, path)? {
            file.set_modified(SystemTime::now())?;
            return Ok(Some(Lease { _file: file }));
        }
    }
}

/// Whether anybody has a lease on a file.
pub(super) fn is_leased(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}

/// Removes a file that nobody has a lease on, and says whether it did.
pub(super) fn remove_unused(path: &Path) -> io::Result<bool> {
    let file = match File::open(path) {
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

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let id = |metadata: Metadata| (metadata.dev(), metadata.ino());
    match fs::metadata(path) {
        Ok(there) => Ok(id(there) == id(file.metadata()?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Notes that a file was used now; one that is not there, or that cannot be noted, is only forgotten sooner.
pub(super) fn touch(path: &Path) {
    if let Ok(file) = File::open(path) {
        let _ = file.set_modified(SystemTime::now());
    }
}

/// Who has leases on a file, as far as the kernel tells this process.
pub(super) fn users(path: &Path) -> Vec<User> {
    let (Ok(metadata), Ok(locks)) = (fs::metadata(path), fs::read_to_string("/proc/locks")) else { return Vec::new() };
    users_in(&locks, metadata.ino())
}

/// The holders of `flock` locks on an inode. Some file systems show another device there than `stat` does, so only the
/// inode is compared.
fn users_in(locks: &str, inode: u64) -> Vec<User> {
    let mut uses: BTreeMap<u32, u32> = BTreeMap::new();
    for line in locks.lines() {
        let mut words = line.split_whitespace().skip(1);
        if words.next() != Some("FLOCK") {
            continue;
        }
        let (pid, place) = (words.nth(2), words.next());
        let found = place.and_then(|place| place.rsplit(':').next()).and_then(|inode| inode.parse::<u64>().ok());
        if let (Some(pid), true) = (pid.and_then(|pid| pid.parse().ok()), found == Some(inode)) {
            *uses.entry(pid).or_default() += 1;
        }
    }
    uses.into_iter().map(|(pid, uses)| User { pid, uses }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leased_file_is_not_removed_and_its_users_are_known() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        assert!(lease(&path).unwrap().is_none());
        fs::write(&path, "x").unwrap();
        let (one, two) = (lease(&path).unwrap().unwrap(), lease(&path).unwrap().unwrap());
        assert!(!remove_unused(&path).unwrap());
        assert_eq!(users(&path), [User { pid: std::process::id(), uses: 2 }]);
        drop((one, two));
        assert_eq!(users(&path), []);
        assert!(remove_unused(&path).unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn the_kernels_table_of_locks_is_understood() {
        let table = "1: FLOCK  ADVISORY  WRITE 11 fe:00:77 0 EOF\n\
                     1: -> FLOCK  ADVISORY  WRITE 12 fe:00:77 0 EOF\n\
                     2: POSIX  ADVISORY  READ 13 fe:00:77 0 EOF\n\
                     3: FLOCK  ADVISORY  READ 14 fe:00:77 0 EOF\n\
                     4: FLOCK  ADVISORY  READ 14 fe:00:77 0 EOF\n\
                     5: FLOCK  ADVISORY  READ 15 fe:00:78 0 EOF\nnonsense\n";
        assert_eq!(users_in(table, 77), [User { pid: 11, uses: 1 }, User { pid: 14, uses: 2 }]);
    }
}
