// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The state of a machine at one moment, from which machines start.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use waggle_images::cache::Lease;
use waggle_link::Past;

use super::{
    file_names::SCRATCH,
    memory_file::MemoryFile,
    run_dirs::{self, RunDirFault, RunDirs},
};
use crate::domain::machine::{PortFuture, Snapshot, SnapshotFault};

/// Maximum size of the state of the devices, in bytes. With 16 processors it has about 300 KB.
pub(super) const DEVICES_BYTES_MAX: u64 = 4 << 20;

/// Memory, devices and disk of a machine. Each machine that starts from the snapshot has its own copies.
#[derive(Debug)]
pub(super) struct VmSnapshot {
    pub(super) shape: Shape,
    pub(super) memory: SavedMemory,
    pub(super) disk: SavedDisk,
    /// Prevents the eviction of the image.
    pub(super) _image: Arc<Lease>,
}

/// The properties that a machine must share with a snapshot to start from it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Shape {
    /// The path of the image's file contains the digest.
    pub(super) image: PathBuf,
    pub(super) cpus: u32,
    pub(super) memory_mib: u32,
    pub(super) disk_mib: u32,
    /// The encoded boot configuration.
    pub(super) boot: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct SavedMemory {
    /// The guest's memory, sealed.
    pub(super) guest: MemoryFile,
    /// The state of the VMM's devices, sealed.
    pub(super) devices: MemoryFile,
    pub(super) pasts: Pasts,
}

/// How far the guest was on its links.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pasts {
    pub(super) calls: Past,
    pub(super) egress: Past,
}

impl Pasts {
    /// The guest boots.
    pub(super) const NONE: Self = Self { calls: Past::None, egress: Past::None };
    /// The guest was served.
    pub(super) const UNKNOWN: Self = Self { calls: Past::Unknown, egress: Past::Unknown };
}

/// A folder with the scratch disk. Dropping it removes the folder.
#[derive(Debug)]
pub(super) struct SavedDisk {
    folder: PathBuf,
    _run_dirs: Arc<RunDirs>,
}

impl SavedDisk {
    /// Creates the folder for the disk of this snapshot.
    ///
    /// # Errors
    /// [`RunDirFault`].
    pub(super) fn new(run_dirs: &Arc<RunDirs>, name: &str) -> Result<Self, RunDirFault> {
        Ok(Self { folder: run_dirs.make(name)?, _run_dirs: Arc::clone(run_dirs) })
    }

    /// The path of the disk.
    pub(super) fn path(&self) -> PathBuf {
        self.folder.join(SCRATCH)
    }
}

impl Drop for SavedDisk {
    fn drop(&mut self) {
        // The folder contains one file.
        run_dirs::clear(&self.folder);
    }
}

/// Reads the file into which the VMM wrote the state of its devices, and seals it.
///
/// # Errors
/// The file cannot be read or is too large.
pub(super) fn read_devices(file: &File) -> io::Result<MemoryFile> {
    let mut content = Vec::new();
    let mut file = file.take(DEVICES_BYTES_MAX + 1);
    file.read_to_end(&mut content)?;
    if content.is_empty() || content.len() as u64 > DEVICES_BYTES_MAX {
        return Err(io::Error::other(format!("the state of the devices has {} bytes", content.len())));
    }
    MemoryFile::with_content(&content)
}

impl Snapshot for VmSnapshot {
    fn has_memory(&self) -> bool {
        true
    }

    fn write<'a>(&'a self, _folder: &'a Path) -> PortFuture<'a, Result<(), SnapshotFault>> {
        Box::pin(async { Err(SnapshotFault::Unsupported { why: "not yet".to_owned() }) })
    }
}
