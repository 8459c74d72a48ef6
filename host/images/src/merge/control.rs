// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Progress and cancellation of a merge, shared between the merge's thread and the task that waits for the thread.

use std::{
    io,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

/// Counts the bytes that a merge has read, and cancels the merge.
#[derive(Debug, Default)]
pub struct MergeControl {
    cancelled: AtomicBool,
    read_bytes: AtomicU64,
}

impl MergeControl {
    /// Makes the merge fail at its next read or write.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Number of stored layer bytes that have been read, before decompression.
    #[must_use]
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Fails once the merge has been cancelled.
    pub(super) fn check(&self) -> io::Result<()> {
        if self.is_cancelled() { Err(io::Error::other("the merge was cancelled")) } else { Ok(()) }
    }

    pub(super) fn add_read(&self, bytes: usize) {
        self.read_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}
