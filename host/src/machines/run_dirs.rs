// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Run folders: `<data>/machines/<server>/<machine>/`, where a machine's sockets, initial root and scratch disk are.
//!
//! A server holds a lock on its folder for its life, and a runner on its machine's. Folders of servers whose lock is
//! free were left behind: the next server removes them, once the runners in them have ended too. It touches only what a
//! server made: folders whose names have the right form and that hold the mark.
//!
//! A machine's programs can write to its folder, and may be hostile. A folder whose removal fails or takes too long is
//! set aside in `<data>/machines/.set-aside/`, where the sweep of each later start tries again.

use std::{
    error::Error,
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use uuid::Uuid;

use super::tree_removal::remove_tree;
use crate::files::private_folder;

/// The folder of run folders, below the data folder.
const FOLDER: &str = "machines";
/// In a server's folder, and in no other.
const MARK: &str = ".waggle-server";
/// A server's folder while it is made; only who holds the sweep's lock makes one.
const NEW: &str = ".new";
/// Length of a server folder's name; short, since the names of sockets in it are bounded.
const NAME_CHARS: usize = 8;

/// How long the sweep waits for a left-behind runner, which ends as soon as its host is gone.
const RUNNER_END_MAX: Duration = Duration::from_secs(5);
/// Between two looks whether it has ended.
const RUNNER_LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Time for the removal of one machine's folder. It usually holds five files; a million take about this long.
const REMOVAL_MAX: Duration = Duration::from_secs(5);
/// Time for all removals of one sweep, by which a hostile folder can delay a start.
const SWEEP_MAX: Duration = Duration::from_secs(10);
/// Holds the folders that could not be removed.
const SET_ASIDE: &str = ".set-aside";

/// Held while folders are made or swept, so that no server sweeps what another has made and not locked yet.
const SWEEP_LOCK: &str = ".lock";

/// A step with a run folder failed.
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

/// A server's folder of machines; dropping it removes it.
#[derive(Debug)]
pub(super) struct RunDirs {
    path: PathBuf,
    _lock: File,
}

impl RunDirs {
    /// Sweeps what dead servers left, makes this server's folder and locks it. Blocks for as long as the sweep.
    ///
    /// # Errors
    /// [`RunDirFault`] names the step and the folder.
    pub(super) fn open(data_dir: &Path) -> Result<Self, RunDirFault> {
        let run = data_dir.join(FOLDER);
        private_folder::ensure(&run).map_err(fault("make", &run))?;
        let run = run.canonicalize().map_err(fault("find", &run))?;
        let mut options = OpenOptions::new();
        let sweep_lock = options.create(true).truncate(false).write(true).mode(0o600).open(run.join(SWEEP_LOCK));
        let sweep_lock = sweep_lock.map_err(fault("lock", &run))?;
        flock(&sweep_lock, FlockOperation::LockExclusive).map_err(|errno| fault("lock", &run)(errno.into()))?;
        sweep(&run, Instant::now() + SWEEP_MAX)?;
        let name = Uuid::new_v4().simple().to_string();
        let path = run.join(name.get(..NAME_CHARS).unwrap_or(&name));
        // Until it has its mark it is no server's folder: one whose making was cut short is made again by the next
        // server.
        let new = run.join(NEW);
        remove(&new, REMOVAL_MAX)?;
        DirBuilder::new().mode(0o700).create(&new).map_err(fault("make", &new))?;
        let lock = File::open(&new).map_err(fault("lock", &new))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|errno| fault("lock", &new)(errno.into()))?;
        fs::write(new.join(MARK), []).map_err(fault("mark", &new))?;
        fs::rename(&new, &path).map_err(fault("name", &path))?;
        Ok(Self { path, _lock: lock })
    }

    /// Makes one machine's folder, for this user's eyes only.
    ///
    /// # Errors
    /// [`RunDirFault`], also when the name is taken.
    pub(super) fn make(&self, machine: &str) -> Result<PathBuf, RunDirFault> {
        let path = self.path.join(machine);
        DirBuilder::new().mode(0o700).create(&path).map_err(fault("make", &path))?;
        Ok(path)
    }
}

impl Drop for RunDirs {
    fn drop(&mut self) {
        // Machines remove their own folders; what cannot be removed now, the next server sweeps.
        if folders_in(&self.path).is_ok_and(|machines| machines.is_empty()) {
            let _ = remove(&self.path, REMOVAL_MAX);
        }
    }
}

/// Removes one machine's folder within this time; one that does not exist is fine.
///
/// # Errors
/// [`RunDirFault`].
pub(super) fn remove(path: &Path, within: Duration) -> Result<(), RunDirFault> {
    remove_until(path, Instant::now() + within)
}

/// Removes one machine's folder, or sets it aside and says so in the log.
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
            "set a run folder aside; the next start tries to remove it"
        ),
        Err(fault) => {
            tracing::warn!(error = removal, set_aside_error = &fault as &dyn Error, "left a run folder behind")
        }
    }
}

fn set_aside(run: &Path, path: &Path) -> Result<PathBuf, RunDirFault> {
    let folder = run.join(SET_ASIDE);
    private_folder::ensure(&folder).map_err(fault("make", &folder))?;
    let place = folder.join(Uuid::new_v4().simple().to_string());
    fs::rename(path, &place).map_err(fault("set aside", path))?;
    Ok(place)
}

/// Removes what dead servers left and what was set aside before. No folder that stays can keep a server from starting.
fn sweep(run: &Path, deadline: Instant) -> Result<(), RunDirFault> {
    // Absent until a removal fails. Listed first: what this sweep sets aside is for the next one.
    let set_aside = folders_in(&run.join(SET_ASIDE)).unwrap_or_default();
    for server in folders_in(run)?.iter().filter(|folder| is_a_servers(folder)) {
        if let Err(fault) = sweep_server(run, server, deadline) {
            tracing::warn!(error = &fault as &dyn Error, "left a server's folder behind");
        }
    }
    for folder in set_aside {
        if let Err(fault) = remove_until(&folder, deadline) {
            tracing::warn!(error = &fault as &dyn Error, "failed to remove a folder that was set aside");
        }
    }
    Ok(())
}

fn is_a_servers(folder: &Path) -> bool {
    let name = folder.file_name().unwrap_or_default().as_encoded_bytes();
    let is_hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    name.len() == NAME_CHARS && name.iter().all(is_hex) && folder.join(MARK).is_file()
}

fn sweep_server(run: &Path, server: &Path, deadline: Instant) -> Result<(), RunDirFault> {
    if is_locked(server).map_err(fault("look at", server))? {
        return Ok(());
    }
    tracing::info!(folder = %server.display(), "removing what a server left behind");
    let runners_end = Instant::now() + RUNNER_END_MAX;
    for machine in folders_in(server)? {
        while is_locked(&machine).unwrap_or(false) && Instant::now() < runners_end {
            thread::sleep(RUNNER_LOOK_INTERVAL);
        }
    }
    remove_or_set_aside(run, server, deadline);
    Ok(())
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
        fs::write(server.join(MARK), []).unwrap();
        fs::set_permissions(data.join("machines"), fs::Permissions::from_mode(0o700)).unwrap();
        server.join("machine")
    }

    #[test]
    fn what_no_server_made_is_never_swept() {
        let data = tempfile::tempdir().unwrap();
        drop(RunDirs::open(data.path()).unwrap());
        let marked = data.path().join("machines/not-hex8");
        let unmarked = data.path().join("machines/cafe0000");
        for folder in [&marked, &unmarked] {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join("mine"), b"x").unwrap();
        }
        fs::write(marked.join(MARK), []).unwrap();
        drop(RunDirs::open(data.path()).unwrap());
        assert!(marked.join("mine").exists());
        assert!(unmarked.join("mine").exists());
    }

    #[test]
    fn a_folder_whose_making_was_cut_short_does_not_stay() {
        let data = tempfile::tempdir().unwrap();
        drop(RunDirs::open(data.path()).unwrap());
        fs::create_dir(data.path().join("machines").join(NEW)).unwrap();
        let server = RunDirs::open(data.path()).unwrap();
        assert_eq!(folders_in(&data.path().join("machines")).unwrap(), std::slice::from_ref(&server.path));
        assert!(server.path.join(MARK).is_file());
    }

    #[test]
    fn a_link_in_the_place_of_the_folder_is_refused() {
        let data = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), data.path().join(FOLDER)).unwrap();
        assert!(RunDirs::open(data.path()).is_err());
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_dead_servers_folder_is_swept_and_a_live_ones_is_not() {
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
    fn the_sweep_waits_for_a_runner_that_still_ends() {
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
    fn folders_are_private_and_removed_in_the_end() {
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
    fn a_folder_that_cannot_be_removed_is_set_aside_and_tried_again() {
        let data = tempfile::tempdir().unwrap();
        let left = left_behind(data.path());
        fs::write(left.join("scratch"), b"x").unwrap();
        let run = data.path().join(FOLDER).canonicalize().unwrap();
        sweep(&run, Instant::now()).unwrap();
        assert!(!left.exists());
        let set_aside = folders_in(&run.join(SET_ASIDE)).unwrap();
        assert_eq!(set_aside.len(), 1);
        assert!(set_aside[0].join("machine/scratch").exists());
        sweep(&run, Instant::now()).unwrap();
        assert_eq!(folders_in(&run.join(SET_ASIDE)).unwrap(), set_aside);
        let _server = RunDirs::open(data.path()).unwrap();
        assert_eq!(folders_in(&run.join(SET_ASIDE)).unwrap(), Vec::<PathBuf>::new());
    }
}
