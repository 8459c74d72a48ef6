// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Saves a long output to a file in the guest, where the caller can read the part that the host does not return.
//!
//! A short output leaves no file. The size of a file and the number of files are limited, and the oldest file is
//! removed first. Bytes beyond the limit, or after a write error such as a full disk, are dropped. The reply then marks
//! the file as incomplete; the command does not notice.

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

/// Bytes buffered in memory before a write to the file. Most outputs are shorter. A write needs a second thread, which
/// is too expensive for the few bytes that programs print at a time.
const MEMORY_BYTES: usize = 64 * 1024;

/// Maximum number of output files in one machine.
const FILES_MAX: usize = 16;

/// The output files of a machine, the oldest first.
#[derive(Debug)]
pub(super) struct OutputFiles {
    temporary: Arc<TemporaryFolder>,
    names: Mutex<VecDeque<Name>>,
}

impl OutputFiles {
    pub(super) fn new(temporary: Arc<TemporaryFolder>) -> Self {
        Self { temporary, names: Mutex::default() }
    }

    /// Adds a file. Returns the oldest file if it must be removed to stay within the limit.
    fn add(&self, file: Name) -> Option<Name> {
        let mut names = lock(&self.names);
        names.push_back(file);
        if names.len() > FILES_MAX { names.pop_front() } else { None }
    }
}

/// Stdout or stderr of one command.
pub(super) struct Spool {
    files: Arc<OutputFiles>,
    keep: Keep,
    extension: &'static str,
    user: User,
    /// Bytes not yet written to the file.
    pending: Vec<u8>,
    file: Option<TemporaryFile>,
    /// A write in progress. It returns the file, and the number of written bytes if it succeeded.
    writing: Option<JoinHandle<(TemporaryFile, Option<u64>)>>,
    kept_bytes: u64,
    total_bytes: u64,
}

impl Spool {
    pub(super) fn new(files: Arc<OutputFiles>, keep: Keep, extension: &'static str, user: User) -> Self {
        let (pending, file, writing) = (Vec::new(), None, None);
        Self { files, keep, extension, user, pending, file, writing, kept_bytes: 0, total_bytes: 0 }
    }

    /// Buffers the next bytes without waiting; [`Self::flush`] writes them to the file.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.total_bytes += bytes.len() as u64;
        let free = self.keep.bytes_max.saturating_sub(self.kept_bytes + self.pending.len() as u64);
        let taken = bytes.len().min(usize::try_from(free).unwrap_or(usize::MAX));
        self.pending.extend_from_slice(bytes.get(..taken).unwrap_or_default());
    }

    /// Writes the buffered bytes if there are at least [`MEMORY_BYTES`]. Dropping the future loses no bytes.
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
        // Another thread writes, so a slow disk delays only this call.
        self.writing = Some(spawn_blocking(move || {
            let whole = file.file().write_all(&bytes).is_ok();
            (file, whole.then_some(bytes.len() as u64))
        }));
        self.finish_write().await;
    }

    async fn finish_write(&mut self) {
        let Some(writing) = &mut self.writing else { return };
        // The task returns an error only if it panicked.
        let (file, bytes) = writing.await.map_or((None, None), |(file, bytes)| (Some(file), bytes));
        (self.writing, self.file) = (None, file);
        match bytes {
            Some(bytes) => self.kept_bytes += bytes,
            None => self.stop(),
        }
    }

    /// Stops writing to the file, and drops all further bytes.
    fn stop(&mut self) {
        self.keep.bytes_max = self.kept_bytes;
        self.pending = Vec::new();
    }

    /// Writes the rest, and returns the file; `None` if the output was short or no file could be created.
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
