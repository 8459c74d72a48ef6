// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Verifies merged images in the background, each at its first use, so that a create does not wait for it.
//!
//! A damaged image loses its name, so the next preparation merges it again. Machines that use it continue, because only
//! their users can know whether the damaged part matters.

use std::{
    collections::HashSet,
    error::Error,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        mpsc::{self, Receiver, SyncSender},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use nix::errno::Errno;
use waggle_shared::{mutex::lock, private_folder};

use super::lease;
use crate::merge::{self, Integrity, MergeControl};

/// Maximum number of images that wait for their verification. An image that finds the queue full is verified at a later
/// use.
const WAITING_MAX: usize = 16;

/// The lowest priority of a thread, for the processor and thereby for the disk.
const LOWEST_PRIORITY: i32 = 19;

/// Verifies images, one after the other. Dropping it cancels the current verification and waits for its end.
#[derive(Debug)]
pub(super) struct Verifier {
    /// Images that have been queued or merged in this process's life.
    known: Mutex<HashSet<PathBuf>>,
    waiting: Option<SyncSender<PathBuf>>,
    control: Arc<MergeControl>,
    thread: Option<JoinHandle<()>>,
}

impl Verifier {
    pub(super) fn start() -> io::Result<Self> {
        let (waiting, images) = mpsc::sync_channel(WAITING_MAX);
        let control = Arc::<MergeControl>::default();
        let thread = thread::Builder::new().name("verify-images".to_owned()).spawn({
            let control = Arc::clone(&control);
            move || work(&images, &control)
        })?;
        Ok(Self { known: Mutex::default(), waiting: Some(waiting), control, thread: Some(thread) })
    }

    /// Excludes an image from verification, because this process has just merged it.
    pub(super) fn skip(&self, path: &Path) {
        lock(&self.known).insert(path.to_owned());
    }

    /// Queues an image, unless it is known. Does not block.
    pub(super) fn queue(&self, path: &Path) {
        let mut known = lock(&self.known);
        if known.contains(path) {
            return;
        }
        if self.waiting.as_ref().is_some_and(|waiting| waiting.try_send(path.to_owned()).is_ok()) {
            known.insert(path.to_owned());
        }
    }
}

impl Drop for Verifier {
    fn drop(&mut self) {
        self.control.cancel();
        self.waiting = None;
        // A thread that has panicked has printed its message.
        drop(self.thread.take().map(JoinHandle::join));
    }
}

fn work(images: &Receiver<PathBuf>, control: &MergeControl) {
    if let Err(error) = rustix::process::setpriority_process(None, LOWEST_PRIORITY) {
        tracing::warn!(%error, "failed to lower the priority of the verification of images");
    }
    for path in images {
        match verify(&path, control) {
            Ok(()) => {}
            Err(_) if control.is_cancelled() => return,
            Err(error) => {
                tracing::warn!(path = %path.display(), error = &error as &dyn Error, "failed to verify a cached image");
            }
        }
    }
}

fn verify(path: &Path, control: &MergeControl) -> io::Result<()> {
    let started = Instant::now();
    let file = match private_folder::open(path) {
        Ok(file) => file,
        // It has been evicted.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    match integrity(&file, control)? {
        Integrity::Whole => {
            let duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            tracing::info!(path = %path.display(), duration_ms, "verified a cached image");
        }
        Integrity::Damaged => {
            let users = lease::holders(path).iter().map(|holder| holder.uses).sum::<u32>();
            remove_damaged(&file, path)?;
            tracing::error!(
                path = %path.display(),
                users,
                "a cached image is damaged and was removed; the next environment with it merges or pulls it again; \
                 environments that use it continue with the damaged file and should be created again; check the disk"
            );
        }
    }
    Ok(())
}

/// Removes the name of a damaged file, even if machines use the file, so that the next preparation merges it again.
pub(super) fn remove_damaged(file: &File, path: &Path) -> io::Result<()> {
    // Another process may have replaced the file.
    if lease::is_at(file, path)? { fs::remove_file(path) } else { Ok(()) }
}

/// Checks a file. A part that the disk cannot read counts as damage; other errors, such as those of a network file
/// system, say nothing about the content.
pub(super) fn integrity(file: &File, control: &MergeControl) -> io::Result<Integrity> {
    match merge::check_integrity(file, control) {
        Err(error) if error.raw_os_error() == Some(Errno::EIO as i32) => {
            tracing::warn!(%error, "the disk failed to read a cached image");
            Ok(Integrity::Damaged)
        }
        checked => checked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_other_content_is_damage_and_not_every_error() {
        let control = MergeControl::default();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        fs::write(&path, vec![7; 8192]).unwrap();
        assert_eq!(integrity(&File::open(&path).unwrap(), &control).unwrap(), Integrity::Damaged);
        let unreadable = File::options().append(true).open(&path).unwrap();
        assert_eq!(integrity(&unreadable, &control).unwrap_err().raw_os_error(), Some(Errno::EBADF as i32));
    }
}
