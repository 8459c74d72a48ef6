// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Run folders: `<data>/machines/<server>/<machine>/` contains a machine's sockets, initial root and scratch disk.
//!
//! A running server holds a lock on its folder, and a runner holds a lock on its machine's folder. If a server's folder
//! is not locked, the server is dead. The next server waits until the runners of the dead server have ended, and then
//! removes the folder. It removes only folders that a server created. Such a folder has a name of eight hexadecimal
//! digits and contains the marker file.
//!
//! The programs of a machine can write to the machine's folder, and may be hostile. If the removal of a folder fails or
//! takes too long, the folder is moved to `<data>/machines/.set-aside/`, and the next server tries again to remove it.

use std::{
    error::Error,
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use uuid::Uuid;
use waggle_shared::private_folder;

use super::tree_removal::remove_tree;

/// The parent of all run folders, in the data folder.
const FOLDER: &str = "machines";
/// The file that marks a folder as a server's folder.
const MARKER: &str = ".waggle-server";
/// Name of a server's folder during its creation. The sweep lock lets only one server use this name at a time.
const NEW: &str = ".new";
/// Length of the name of a server's folder. The name is short, because the length of a socket's path is limited.
const NAME_CHARS: usize = 8;

/// Timeout for the end of a dead server's runners. A runner ends soon after its server.
const RUNNER_END_MAX: Duration = Duration::from_secs(5);
/// Interval between two checks whether a runner has ended.
const RUNNER_CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// Timeout for the removal of one machine's folder. The folder usually contains five files. A million files take about
/// five seconds.
const REMOVAL_MAX: Duration = Duration::from_secs(5);
/// Timeout for all removals of one sweep, because hostile folders could delay the server's start.
const SWEEP_MAX: Duration = Duration::from_secs(10);
/// Name of the folder that contains the folders whose removal failed or has not finished.
const SET_ASIDE: &str = ".set-aside";

/// Locked while a server creates its folder or sweeps. So no server removes a new folder that its server has not locked
/// yet.
const SWEEP_LOCK: &str = ".lock";

#[derive(Debug, thiserror::Error)]
#[error("failed to {step} the run folder {}", path.display())]
pub(crate) struct RunDirFault {
    step: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn fault(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RunDirFault {
    let path = path.to_owned();
    move |source| RunDirFault { step, path, source }
}

/// The folder of one server. Dropping it removes the folder.
#[derive(Debug)]
pub(super) struct RunDirs {
    path: PathBuf,
    _lock: File,
}

impl RunDirs {
    /// Removes folders of dead servers, then creates and locks this server's folder. Blocks until the sweep has
    /// finished.
    ///
    /// # Errors
    /// [`RunDirFault`] with the step and the folder.
    pub(super) fn open(data_dir: &Path) -> Result<Self, RunDirFault> {
        let run = data_dir.join(FOLDER);
        private_folder::ensure(&run).map_err(fault("create", &run))?;
        let run = run.canonicalize().map_err(fault("find", &run))?;
        let sweep_lock = private_folder::open_lock(&run.join(SWEEP_LOCK)).map_err(fault("lock", &run))?;
        flock(&sweep_lock, FlockOperation::LockExclusive).map_err(|errno| fault("lock", &run)(errno.into()))?;
        sweep(&run, SWEEP_MAX)?;
        let name = Uuid::new_v4().simple().to_string();
        let path = run.join(name.get(..NAME_CHARS).unwrap_or(&name));
        // The folder gets its final name after it contains the marker. The next server replaces a half-created folder.
        let new = run.join(NEW);
        remove(&new, REMOVAL_MAX)?;
        DirBuilder::new().mode(0o700).create(&new).map_err(fault("create", &new))?;
        let lock = File::open(&new).map_err(fault("lock", &new))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|errno| fault("lock", &new)(errno.into()))?;
        fs::write(new.join(MARKER), []).map_err(fault("mark", &new))?;
        fs::rename(&new, &path).map_err(fault("rename", &path))?;
        Ok(Self { path, _lock: lock })
    }

    /// Creates one machine's folder, which only this user can access.
    ///
    /// # Errors
    /// [`RunDirFault`], also if the folder exists.
    pub(super) fn make(&self, machine: &str) -> Result<PathBuf, RunDirFault> {
        let path = self.path.join(machine);
        DirBuilder::new().mode(0o700).create(&path).map_err(fault("create", &path))?;
        Ok(path)
    }
}

impl Drop for RunDirs {
    fn drop(&mut self) {
        // Machines' folders are removed when the machines end. If one is left, the next server removes the parent too.
        if folders_in(&self.path).is_ok_and(|machines| machines.is_empty()) {
            let _ = remove(&self.path, REMOVAL_MAX);
        }
    }
}

/// Removes a run folder if it exists. `within` is the timeout.
///
/// # Errors
/// [`RunDirFault`].
pub(super) fn remove(path: &Path, within: Duration) -> Result<(), RunDirFault> {
    remove_until(path, Instant::now() + within)
}

/// Removes one machine's folder. If the removal fails, moves the folder aside and logs a warning.
pub(super) fn clear(path: &Path) {
    let Some(run) = path.ancestors().nth(2) else { return };
    remove_or_set_aside(run, path, Instant::now() + REMOVAL_MAX);
}

fn remove_until(path: &Path, deadline: Instant) -> Result<(), RunDirFault> {
    remove_tree(path, deadline).map_err(fault("remove", path))
}

fn remove_or_set_aside(run: &Path, path: &Path, deadline: Instant) {
    let Err(removal) = remove_until(path, deadline) else { return };
    let removal: &dyn Error = &removal;
    match set_aside(run, path) {
        Ok(place) => tracing::warn!(
            error = removal,
            folder = %place.display(),
            "failed to remove a run folder; the next start of the server tries again"
        ),
        Err(fault) => {
            tracing::warn!(
                error = removal,
                set_aside_error = &fault as &dyn Error,
                "failed to remove a run folder and to move it aside"
            )
        }
    }
}

fn set_aside(run: &Path, path: &Path) -> Result<PathBuf, RunDirFault> {
    let folder = run.join(SET_ASIDE);
    private_folder::ensure(&folder).map_err(fault("create", &folder))?;
    let place = folder.join(Uuid::new_v4().simple().to_string());
    fs::rename(path, &place).map_err(fault("set aside", path))?;
    Ok(place)
}

/// Removes the folders of dead servers and the folders that were set aside earlier. A failed removal does not prevent
/// the server's start.
fn sweep(run: &Path, within: Duration) -> Result<(), RunDirFault> {
    // This folder does not exist until a folder is set aside.
    let earlier = folders_in(&run.join(SET_ASIDE)).unwrap_or_default();
    let mut dead = folders_in(run)?;
    dead.retain(|folder| is_server_folder(folder));
    let runners_end = Instant::now() + RUNNER_END_MAX;
    dead.retain(|server| match wait_for_runners(server, runners_end) {
        Ok(is_dead) => is_dead,
        Err(fault) => {
            tracing::warn!(error = &fault as &dyn Error, "failed to check the folder of a server");
            false
        }
    });
    let deadline = Instant::now() + within;
    let mut leftovers = Vec::new();
    for server in dead {
        tracing::info!(folder = %server.display(), "removing the folder of a dead server");
        // The folder is moved first, because a removal that fails may already have removed the marker.
        match set_aside(run, &server) {
            Ok(place) => leftovers.push(place),
            Err(fault) => {
                tracing::warn!(error = &fault as &dyn Error, "failed to move the folder of a dead server aside");
                leftovers.push(server);
            }
        }
    }
    for folder in leftovers.into_iter().chain(earlier) {
        if let Err(fault) = remove_until(&folder, deadline) {
            tracing::warn!(error = &fault as &dyn Error, "failed to remove a run folder that was set aside");
        }
    }
    Ok(())
}

fn is_server_folder(folder: &Path) -> bool {
    let name = folder.file_name().unwrap_or_default().as_encoded_bytes();
    let is_hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    name.len() == NAME_CHARS && name.iter().all(is_hex) && folder.join(MARKER).is_file()
}

/// Waits until the runners of a dead server have ended, at most until `until`. Returns false if the server is alive.
fn wait_for_runners(server: &Path, until: Instant) -> Result<bool, RunDirFault> {
    if is_locked(server).map_err(fault("check", server))? {
        return Ok(false);
    }
    for machine in folders_in(server)? {
        while is_locked(&machine).unwrap_or(false) && Instant::now() < until {
            thread::sleep(RUNNER_CHECK_INTERVAL);
        }
    }
    Ok(true)
}

fn folders_in(path: &Path) -> Result<Vec<PathBuf>, RunDirFault> {
    let entries = fs::read_dir(path).map_err(fault("list", path))?;
    let entries: Vec<_> = entries.collect::<Result<_, _>>().map_err(fault("list", path))?;
    Ok(entries
        .iter()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect())
}

fn is_locked(path: &Path) -> io::Result<bool> {
    match flock(File::open(path)?, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(false),
        Err(Errno::WOULDBLOCK) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn left_behind(data: &Path) -> PathBuf {
        let server = data.join("machines/dead0000");
        fs::create_dir_all(server.join("machine")).unwrap();
        fs::write(server.join(MARKER), []).unwrap();
        fs::set_permissions(data.join("machines"), fs::Permissions::from_mode(0o700)).unwrap();
        server.join("machine")
    }

    #[test]
    fn sweep_keeps_folders_that_no_server_created() {
        let data = tempfile::tempdir().unwrap();
        drop(RunDirs::open(data.path()).unwrap());
        let marked = data.path().join("machines/not-hex8");
        let unmarked = data.path().join("machines/cafe0000");
        for folder in [&marked, &unmarked] {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join("mine"), b"x").unwrap();
        }
        fs::write(marked.join(MARKER), []).unwrap();
        drop(RunDirs::open(data.path()).unwrap());
        assert!(marked.join("mine").exists());
        assert!(unmarked.join("mine").exists());
    }

    #[test]
    fn half_created_folder_is_replaced() {
        let data = tempfile::tempdir().unwrap();
        drop(RunDirs::open(data.path()).unwrap());
        fs::create_dir(data.path().join("machines").join(NEW)).unwrap();
        let server = RunDirs::open(data.path()).unwrap();
        assert_eq!(folders_in(&data.path().join("machines")).unwrap(), std::slice::from_ref(&server.path));
        assert!(server.path.join(MARKER).is_file());
    }

    #[test]
    fn symbolic_link_as_parent_folder_is_refused() {
        let data = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), data.path().join(FOLDER)).unwrap();
        let fault = waggle_shared::causes::chain(&RunDirs::open(data.path()).unwrap_err());
        assert!(fault.contains("symbolic links are not followed"), "{fault}");
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    }

    #[test]
    fn sweep_removes_only_folders_of_dead_servers() {
        let data = tempfile::tempdir().unwrap();
        let live = RunDirs::open(data.path()).unwrap();
        let kept = live.make("machine").unwrap();
        let left = left_behind(data.path());
        fs::write(left.join("scratch"), b"x").unwrap();
        let second = RunDirs::open(data.path()).unwrap();
        assert!(kept.exists());
        assert!(!left.exists());
        assert_ne!(live.path, second.path);
    }

    #[test]
    fn sweep_waits_for_runners_that_are_still_ending() {
        let data = tempfile::tempdir().unwrap();
        let left = left_behind(data.path());
        let runner = File::open(&left).unwrap();
        flock(&runner, FlockOperation::NonBlockingLockExclusive).unwrap();
        let held = Duration::from_millis(100);
        let started = Instant::now();
        let ending = thread::spawn(move || {
            thread::sleep(held);
            drop(runner);
        });
        let _server = RunDirs::open(data.path()).unwrap();
        assert!(started.elapsed() >= held, "{:?}", started.elapsed());
        assert!(!left.exists());
        ending.join().unwrap();
    }

    #[test]
    fn folders_are_private_and_removed_on_drop() {
        let data = tempfile::tempdir().unwrap();
        let server = RunDirs::open(data.path()).unwrap();
        let machine = server.make("machine").unwrap();
        for path in [&server.path, &machine] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o700);
        }
        clear(&machine);
        clear(&machine);
        let path = server.path.clone();
        drop(server);
        assert!(!path.exists());
    }

    #[test]
    fn folder_that_cannot_be_removed_is_set_aside_and_retried() {
        let data = tempfile::tempdir().unwrap();
        let left = left_behind(data.path());
        fs::write(left.join("scratch"), b"x").unwrap();
        let run = data.path().join(FOLDER).canonicalize().unwrap();
        sweep(&run, Duration::ZERO).unwrap();
        assert!(!left.exists());
        let set_aside = folders_in(&run.join(SET_ASIDE)).unwrap();
        assert_eq!(set_aside.len(), 1);
        assert!(set_aside[0].join("machine/scratch").exists());
        sweep(&run, Duration::ZERO).unwrap();
        assert_eq!(folders_in(&run.join(SET_ASIDE)).unwrap(), set_aside);
        let _server = RunDirs::open(data.path()).unwrap();
        assert_eq!(folders_in(&run.join(SET_ASIDE)).unwrap(), Vec::<PathBuf>::new());
    }
}
