// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Progress and cancellation of a merge, shared between the merge's thread and the task that waits for the thread.

use std::{
    io,
    path::PathBuf,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use waggle_shared::disk_reserve::{DiskReserve, LowDisk};

/// Bytes that are written between two checks of the free space: a small part of any sensible reserve, and a check takes
/// only microseconds.
const RESERVE_CHECK_BYTES: u64 = 8 * 1024 * 1024;

/// Counts the bytes that a merge has read, and cancels the merge.
#[derive(Debug, Default)]
pub struct MergeControl {
    cancelled: AtomicBool,
    read_bytes: AtomicU64,
    reserve: DiskReserve,
    /// A folder on the disk with the reserve.
    folder: PathBuf,
    /// Bytes written since the last check of the free space.
    unchecked_bytes: AtomicU64,
    low_disk: OnceLock<LowDisk>,
}

impl MergeControl {
    /// Creates the control of a merge that is cancelled when less than the reserve is free on the folder's disk.
    #[must_use]
    pub fn with_reserve(reserve: DiskReserve, folder: PathBuf) -> Self {
        Self { reserve, folder, ..Self::default() }
    }

    /// Returns the reason of the cancellation, if it was too little free space.
    pub(crate) fn low_disk(&self) -> Option<LowDisk> {
        self.low_disk.get().copied()
    }

    /// Counts bytes that were written to the disk. Fails if less than the reserve is free.
    pub(super) fn add_written(&self, bytes: usize) -> io::Result<()> {
        let unchecked = self.unchecked_bytes.fetch_add(bytes as u64, Ordering::Relaxed).saturating_add(bytes as u64);
        if unchecked < RESERVE_CHECK_BYTES {
            return Ok(());
        }
        self.unchecked_bytes.store(0, Ordering::Relaxed);
        self.reserve.check(&self.folder, 0).map_err(|low| {
            let _ = self.low_disk.set(low);
            self.cancel();
            io::Error::other(low)
        })
    }

    /// Makes the merge fail at its next read or write.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Number of stored layer bytes that have been read, before decompression.
    #[must_use]
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn is_cancelled(&self) -> bool {
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
