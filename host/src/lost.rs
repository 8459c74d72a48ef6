// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The ids of the running environments, in a file that outlives a server that is killed. The next server reads them,
//! and tells their owners that the environments are lost.
//!
//! Each server that runs has a file of its own, which it locks:
//!
//! ```text
//! <data>/running/<uuid>    a line for each running environment: its id, its owner, and `running` or `unsuspended`
//! ```
//!
//! The file is not flushed to the disk, so after a power cut it may be older. A wrong line only changes the text of an
//! error.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Mutex,
};

use waggle_shared::{mutex::lock, private_folder};

use crate::domain::{environment_id::EnvironmentId, principal::Principal, repository::DestroyReason};

const FOLDER: &str = "running";

/// Maximum bytes that are read of a file: enough for a thousand environments.
const FILE_BYTES_MAX: u64 = 128 * 1024;

/// Maximum number of files of dead servers that one start reads.
const FILES_MAX: usize = 64;

const RUNNING: &str = "running";
const UNSUSPENDED: &str = "unsuspended";

/// An environment that an earlier server has lost.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Lost {
    pub id: EnvironmentId,
    pub owner: Principal,
    /// [`DestroyReason::Lost`] or [`DestroyReason::Unsuspended`].
    pub reason: DestroyReason,
}

/// The file of this server.
#[derive(Debug)]
pub struct RunningIds {
    path: PathBuf,
    file: File,
    lines: Mutex<BTreeMap<EnvironmentId, (Principal, &'static str)>>,
}

impl RunningIds {
    /// Creates the file of this server. Reads and removes the files of dead servers, and returns what they have lost.
    ///
    /// # Errors
    /// The folder cannot be created or listed, or the file cannot be created.
    pub fn open(data_dir: &Path) -> io::Result<(Self, Vec<Lost>)> {
        let folder = data_dir.join(FOLDER);
        private_folder::ensure(&folder)?;
        let mut lost = Vec::new();
        for entry in fs::read_dir(&folder)?.take(FILES_MAX) {
            let path = entry?.path();
            match read_dead(&path) {
                Ok(found) => lost.extend(found),
                // A file that cannot be read must not prevent the start of a server.
                Err(error) => tracing::warn!(path = %path.display(), %error, "failed to read the ids of a dead server"),
            }
        }
        let path = folder.join(uuid::Uuid::new_v4().to_string());
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.lock()?;
        Ok((Self { path, file, lines: Mutex::default() }, lost))
    }

    /// Adds a running environment.
    pub fn add(&self, id: EnvironmentId, owner: &Principal) {
        self.change(|lines| lines.insert(id, (owner.clone(), RUNNING)));
    }

    /// Removes an environment that is destroyed or suspended.
    pub fn remove(&self, id: EnvironmentId) {
        self.change(|lines| lines.remove(&id));
    }

    /// Keeps an environment for the next server, which tells its owner that it could not be suspended.
    pub fn keep_unsuspended(&self, id: EnvironmentId) {
        self.change(|lines| lines.get_mut(&id).map(|line| line.1 = UNSUSPENDED));
    }

    fn change<T>(&self, change: impl FnOnce(&mut BTreeMap<EnvironmentId, (Principal, &'static str)>) -> T) {
        let mut lines = lock(&self.lines);
        change(&mut lines);
        let mut text = String::new();
        for (id, (owner, state)) in &*lines {
            let _ = writeln!(text, "{id} {owner} {state}");
        }
        // A short write to the page cache. A server that is killed in between leaves old lines at the end.
        let written = self.file.write_all_at(text.as_bytes(), 0).and_then(|()| self.file.set_len(text.len() as u64));
        if let Err(error) = written {
            tracing::warn!(path = %self.path.display(), %error, "failed to write the ids of the running environments");
        }
    }
}

impl Drop for RunningIds {
    fn drop(&mut self) {
        if lock(&self.lines).is_empty()
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "failed to remove the ids of the running environments");
        }
    }
}

/// Reads and removes the file of a dead server. Returns nothing for the file of a server that runs.
fn read_dead(path: &Path) -> io::Result<Vec<Lost>> {
    let file = private_folder::open(path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(Vec::new()),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    let mut text = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut text)?;
    fs::remove_file(path)?;
    Ok(String::from_utf8_lossy(&text).lines().filter_map(parse).collect())
}

/// Parses a line; a line that was not written to its end has no meaning.
fn parse(line: &str) -> Option<Lost> {
    let words: Vec<_> = line.split(' ').collect();
    let [id, owner, state] = words.as_slice() else { return None };
    let reason = match *state {
        RUNNING => DestroyReason::Lost,
        UNSUSPENDED => DestroyReason::Unsuspended,
        _ => return None,
    };
    Some(Lost { id: id.parse().ok()?, owner: Principal::stored(owner)?, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_server_learns_of_environments_that_ran_when_a_server_was_killed() {
        let folder = tempfile::tempdir().unwrap();
        let ids = [(); 4].map(|()| EnvironmentId::random());
        let (ada, anonymous) = ("ada".parse::<Principal>().unwrap(), Principal::anonymous());
        let (running, lost) = RunningIds::open(folder.path()).unwrap();
        assert_eq!(lost, []);
        running.add(ids[0], &ada);
        running.add(ids[1], &anonymous);
        running.add(ids[2], &anonymous);
        running.add(ids[3], &ada);
        running.remove(ids[2]);
        running.keep_unsuspended(ids[3]);
        // The file of a server that runs is not touched.
        assert_eq!(RunningIds::open(folder.path()).unwrap().1, []);
        // The lock of a killed server ends with its process, and nothing is dropped in order.
        let (path, lines) = (running.path.clone(), fs::read(&running.path).unwrap());
        *lock(&running.lines) = BTreeMap::new();
        drop(running);
        fs::write(&path, lines).unwrap();
        let (_next, mut lost) = RunningIds::open(folder.path()).unwrap();
        lost.sort_by_key(|lost| lost.id);
        let mut expected = vec![
            Lost { id: ids[0], owner: ada.clone(), reason: DestroyReason::Lost },
            Lost { id: ids[1], owner: anonymous, reason: DestroyReason::Lost },
            Lost { id: ids[3], owner: ada, reason: DestroyReason::Unsuspended },
        ];
        expected.sort_by_key(|lost| lost.id);
        assert_eq!(lost, expected);
        assert_eq!(RunningIds::open(folder.path()).unwrap().1, []);
    }

    #[test]
    fn server_that_ends_in_order_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let (running, _) = RunningIds::open(folder.path()).unwrap();
        let id = EnvironmentId::random();
        running.add(id, &Principal::anonymous());
        running.remove(id);
        drop(running);
        assert_eq!(fs::read_dir(folder.path().join(FOLDER)).unwrap().count(), 0);
    }

    #[test]
    fn incomplete_and_invalid_lines_are_ignored() {
        let id = EnvironmentId::random();
        for line in ["", "x", &format!("{id} ada"), &format!("{id} ada runn"), &format!("{id} a:b running")] {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
