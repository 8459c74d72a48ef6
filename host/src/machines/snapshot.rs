// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The state of a machine at one moment, from which machines start.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use waggle_link::Past;
use waggle_shared::mutex::lock;

use super::{
    file_names::SCRATCH,
    machine_image::MachineImage,
    memory_file::MemoryFile,
    origin::Origin,
    run_dirs::{self, RunDirFault, RunDirs},
    runner_messages::DEVICES_BYTES_MAX,
};

/// See the module's documentation. Each machine that starts from the snapshot has a disk of its own.
#[derive(Debug)]
pub(super) struct VmSnapshot {
    pub(super) shape: Shape,
    /// `None` if the machine must boot.
    pub(super) memory: Option<SavedMemory>,
    pub(super) disk: SavedDisk,
    pub(super) image: MachineImage,
    /// The folder for images of saved machines.
    pub(super) image_pool: PathBuf,
    pub(super) origin: Arc<Origin>,
}

/// The properties that a machine must share with a snapshot to continue with its memory.
#[derive(Clone, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub(super) struct Shape {
    /// The path of the image's file in the cache. It contains the digest.
    pub(super) image: PathBuf,
    pub(super) cpus: u32,
    pub(super) memory_mib: u32,
    pub(super) disk_mib: u32,
    /// The encoded boot configuration.
    pub(super) boot: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct SavedMemory {
    pub(super) guest: GuestFile,
    /// The state of the VMM's devices, sealed.
    pub(super) devices: MemoryFile,
    pub(super) pasts: Pasts,
}

/// The file with the memory of a guest.
#[derive(Debug)]
pub(super) enum GuestFile {
    /// For any number of machines. The file is sealed, and a machine has copies of the pages that it changes.
    Shared(MemoryFile),
    /// For one machine, which changes the file: with copies of its own, it would need twice the memory. `None` once a
    /// machine has the file.
    Single(Mutex<Option<MemoryFile>>),
}

impl GuestFile {
    pub(super) fn single(file: MemoryFile) -> Self {
        Self::Single(Mutex::new(Some(file)))
    }

    /// The file; `None` if a machine has it.
    pub(super) fn file(&self) -> Option<MemoryFile> {
        match self {
            Self::Shared(file) => Some(file.clone()),
            Self::Single(file) => lock(file).clone(),
        }
    }
}

/// The memory with which a machine continues.
#[derive(Debug)]
pub(super) struct ResumedMemory {
    pub(super) guest: MemoryFile,
    /// Whether other machines use the same file.
    pub(super) is_shared: bool,
    pub(super) devices: MemoryFile,
    pub(super) pasts: Pasts,
}

impl VmSnapshot {
    /// Takes the memory for one machine; `None` if there is none, or if another machine has it.
    pub(super) fn take_memory(&self) -> Option<ResumedMemory> {
        let SavedMemory { guest, devices, pasts } = self.memory.as_ref()?;
        let (guest, is_shared) = match guest {
            GuestFile::Shared(file) => (file.clone(), true),
            GuestFile::Single(file) => (lock(file).take()?, false),
        };
        Some(ResumedMemory { guest, is_shared, devices: devices.clone(), pasts: *pasts })
    }
}

/// The progress of the guest on its links.
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

/// A folder with the scratch disk.
#[derive(Debug)]
pub(super) struct SavedDisk {
    folder: PathBuf,
    /// Set if dropping this removes the folder.
    run_dirs: Option<Arc<RunDirs>>,
}

impl SavedDisk {
    /// Creates a folder for the disk of the machine in `run_dir`. The name of the folder begins like that of `run_dir`.
    ///
    /// # Errors
    /// [`RunDirFault`].
    pub(super) fn new(run_dirs: &Arc<RunDirs>, run_dir: &Path) -> Result<Self, RunDirFault> {
        let machine = run_dir.file_name().unwrap_or_default().to_string_lossy();
        let folder = run_dirs.make(&format!("{machine}-{}", Uuid::new_v4()))?;
        Ok(Self { folder, run_dirs: Some(Arc::clone(run_dirs)) })
    }

    /// Uses the disk in a folder of another owner.
    pub(super) fn in_folder(folder: PathBuf) -> Self {
        Self { folder, run_dirs: None }
    }

    /// The path of the disk.
    pub(super) fn path(&self) -> PathBuf {
        self.folder.join(SCRATCH)
    }

    /// Moves the disk of a machine here.
    ///
    /// # Errors
    /// The kernel's error.
    pub(super) fn take(&self, scratch: &Path) -> io::Result<()> {
        fs::rename(scratch, self.path())
    }
}

impl Drop for SavedDisk {
    fn drop(&mut self) {
        if self.run_dirs.is_some() {
            // The folder contains one file.
            run_dirs::clear(&self.folder);
        }
    }
}

/// Reads the file into which the VMM wrote the state of its devices, and seals it.
///
/// # Errors
/// The file cannot be read or is too large.
pub(super) fn read_devices(file: &File) -> io::Result<MemoryFile> {
    let mut content = Vec::new();
    let mut file = file;
    // The process that wrote the file shares its position.
    file.rewind()?;
    let mut file = file.take(DEVICES_BYTES_MAX + 1);
    file.read_to_end(&mut content)?;
    if content.is_empty() || content.len() as u64 > DEVICES_BYTES_MAX {
        let text = format!("the state of the devices has {} bytes", content.len());
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    MemoryFile::with_content(&content)
}
