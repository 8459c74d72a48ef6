// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Keeps a long output in a file in the guest, so that what the host could not show can be read on there.
//!
//! Short outputs never touch the disk. The file is bounded, and so is the number of such files: the oldest goes first.
//! What can't be kept, for a full disk or the bound, is left out and told; the command does not notice.

use std::{collections::VecDeque, io::Write, mem, sync::Mutex};

use tokio::task::{JoinHandle, spawn_blocking};
use waggle_protocol::{
    reply::OutputFile,
    request::{Keep, User},
};

use crate::{
    guest::Served,
    mutex::lock,
    temporary::{Name, TemporaryFile},
};

/// Kept in memory before it is written, in bytes: most outputs end before that, and a write takes a thread's attention,
/// which is dear for the few bytes that programs put out at a time.
const MEMORY_BYTES: usize = 64 * 1024;

/// Files with outputs that one machine keeps.
pub(crate) const FILES_MAX: usize = 16;

/// One output's keeper.
pub(super) struct Spool {
    keep: Keep,
    extension: &'static str,
    /// Taken, and not yet in the file.
    pending: Vec<u8>,
    file: Option<TemporaryFile>,
    /// A write that is under way, with the file, and what it came to.
    writing: Option<JoinHandle<(TemporaryFile, Option<u64>)>>,
    kept_bytes: u64,
    total_bytes: u64,
    complete: bool,
}

impl Spool {
    pub(super) fn new(keep: Keep, extension: &'static str) -> Self {
        let pending = Vec::new();
        Self { keep, extension, pending, file: None, writing: None, kept_bytes: 0, total_bytes: 0, complete: true }
    }

    /// Takes the next bytes, at once; [`Self::flush`] brings them to the file.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        self.total_bytes += bytes.len() as u64;
        let room = self.keep.bytes_max.saturating_sub(self.kept_bytes + self.pending.len() as u64);
        let taken = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        self.complete &= taken == bytes.len();
        self.pending.extend_from_slice(bytes.get(..taken).unwrap_or_default());
    }

    /// Writes what was taken, once there is enough of it. Dropping the future loses nothing.
    pub(super) async fn flush(&mut self, served: &Served, user: User) {
        self.settle().await;
        if self.pending.len() >= MEMORY_BYTES {
            self.write(served, user).await;
        }
    }

    async fn write(&mut self, served: &Served, user: User) {
        if self.pending.is_empty() {
            return;
        }
        if self.file.is_none() {
            self.file = TemporaryFile::create(served, self.extension, user).await.ok();
        }
        let file = self.file.take();
        let bytes = mem::take(&mut self.pending);
        match file {
            // A slow disk holds up this call alone.
            Some(file) => {
                self.writing = Some(spawn_blocking(move || {
                    let whole = file.file().write_all(&bytes).is_ok();
                    (file, whole.then_some(bytes.len() as u64))
                }));
            }
            None => self.give_up(),
        }
        self.settle().await;
    }

    /// Waits for a write that is under way.
    async fn settle(&mut self) {
        let Some(writing) = &mut self.writing else { return };
        let written = writing.await;
        self.writing = None;
        match written {
            Ok((file, Some(bytes))) => {
                self.file = Some(file);
                self.kept_bytes += bytes;
            }
            Ok((file, None)) => {
                self.file = Some(file);
                self.give_up();
            }
            Err(_panicked) => self.give_up(),
        }
    }

    /// Keeps what is in the file, and takes no more.
    fn give_up(&mut self) {
        self.complete = false;
        self.keep.bytes_max = self.kept_bytes;
        self.pending = Vec::new();
    }

    /// The file, if the output was long enough to need one.
    pub(super) async fn finish(mut self, served: &Served, user: User) -> Option<OutputFile> {
        if self.total_bytes <= self.keep.above_bytes {
            return None;
        }
        self.settle().await;
        self.write(served, user).await;
        let file = self.file?;
        let told = OutputFile { path: file.guest_path(), bytes: self.kept_bytes, complete: self.complete };
        if let Some(oldest) = served.outputs.add(file.into_name()) {
            oldest.remove().await;
        }
        Some(told)
    }
}

/// The files with outputs that a machine keeps, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct KeptOutputs(Mutex<VecDeque<Name>>);

impl KeptOutputs {
    /// Keeps one more; gives back the one that has to go for it.
    fn add(&self, file: Name) -> Option<Name> {
        let mut files = lock(&self.0);
        files.push_back(file);
        if files.len() > FILES_MAX { files.pop_front() } else { None }
    }
}
