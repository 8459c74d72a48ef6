// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Keeps a long output in a file in the guest, so that the part that the host could not show can be read there.
//!
//! Short outputs never touch the disk. The size of a file and the number of files are limited; the oldest file is
//! removed first. Bytes that can't be kept, because of a full disk or the limit, are left out, and the reply says so;
//! the command does not notice.

use std::{
    collections::VecDeque,
    io::Write,
    mem,
    sync::{Arc, Mutex},
};

use tokio::task::{JoinHandle, spawn_blocking};
use waggle_protocol::{
    reply::OutputFile,
    request::{Keep, User},
};

use crate::{
    mutex::lock,
    temporary::{Name, TemporaryFile, TemporaryFolder},
};

/// Bytes kept in memory before they are written. Most outputs are shorter, and a write needs a second thread, which is
/// expensive for the few bytes that programs print at a time.
const MEMORY_BYTES: usize = 64 * 1024;

/// Most files with outputs in one machine.
const FILES_MAX: usize = 16;

/// The files with outputs of a machine, the oldest first.
#[derive(Debug)]
pub(super) struct OutputFiles {
    temporary: Arc<TemporaryFolder>,
    names: Mutex<VecDeque<Name>>,
}

impl OutputFiles {
    pub(super) fn new(temporary: Arc<TemporaryFolder>) -> Self {
        Self { temporary, names: Mutex::default() }
    }

    /// Adds a file; returns the one that must be removed for it.
    fn add(&self, file: Name) -> Option<Name> {
        let mut names = lock(&self.names);
        names.push_back(file);
        if names.len() > FILES_MAX { names.pop_front() } else { None }
    }
}

/// One output of one command.
pub(super) struct Spool {
    files: Arc<OutputFiles>,
    keep: Keep,
    extension: &'static str,
    user: User,
    /// Bytes that are not in the file yet.
    pending: Vec<u8>,
    file: Option<TemporaryFile>,
    /// A running write; it returns the file, and the number of bytes unless it failed.
    writing: Option<JoinHandle<(TemporaryFile, Option<u64>)>>,
    kept_bytes: u64,
    total_bytes: u64,
}

impl Spool {
    pub(super) fn new(files: Arc<OutputFiles>, keep: Keep, extension: &'static str, user: User) -> Self {
        let (pending, file, writing) = (Vec::new(), None, None);
        Self { files, keep, extension, user, pending, file, writing, kept_bytes: 0, total_bytes: 0 }
    }

    /// Takes the next bytes without waiting; [`Self::flush`] writes them to the file.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.total_bytes += bytes.len() as u64;
        let free = self.keep.bytes_max.saturating_sub(self.kept_bytes + self.pending.len() as u64);
        let taken = bytes.len().min(usize::try_from(free).unwrap_or(usize::MAX));
        self.pending.extend_from_slice(bytes.get(..taken).unwrap_or_default());
    }

    /// Writes the pending bytes if there are enough. Dropping the future loses none.
    pub(super) async fn flush(&mut self) {
        self.finish_write().await;
        if self.pending.len() >= MEMORY_BYTES {
            self.write().await;
        }
    }

    async fn write(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        if self.file.is_none() {
            self.file = self.files.temporary.create(self.extension, self.user).await.ok();
        }
        let Some(file) = self.file.take() else { return self.stop() };
        let bytes = mem::take(&mut self.pending);
        // A slow disk delays only this call.
        self.writing = Some(spawn_blocking(move || {
            let whole = file.file().write_all(&bytes).is_ok();
            (file, whole.then_some(bytes.len() as u64))
        }));
        self.finish_write().await;
    }

    async fn finish_write(&mut self) {
        let Some(writing) = &mut self.writing else { return };
        // An error means that the write panicked.
        let (file, bytes) = writing.await.map_or((None, None), |(file, bytes)| (Some(file), bytes));
        (self.writing, self.file) = (None, file);
        match bytes {
            Some(bytes) => self.kept_bytes += bytes,
            None => self.stop(),
        }
    }

    /// Keeps the file as it is, and takes no more bytes.
    fn stop(&mut self) {
        self.keep.bytes_max = self.kept_bytes;
        self.pending = Vec::new();
    }

    /// Returns the file, if the output was long enough to need one.
    pub(super) async fn finish(mut self) -> Option<OutputFile> {
        if self.total_bytes <= self.keep.above_bytes {
            return None;
        }
        self.finish_write().await;
        self.write().await;
        let file = self.file?;
        let complete = self.kept_bytes == self.total_bytes;
        let output = OutputFile { path: file.guest_path(), bytes: self.kept_bytes, complete };
        if let Some(oldest) = self.files.add(file.into_name()) {
            oldest.remove().await;
        }
        Some(output)
    }
}
