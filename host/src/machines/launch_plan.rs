// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Everything needed to start one machine.

use std::{
    ffi::OsString,
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use waggle_protocol::boot::BootConfig;
use waggle_shared::disk_reserve::DiskReserve;

use super::{
    disks::Disks,
    initramfs::SharedRoot,
    machine_image::MachineImage,
    memory_file::MemoryFile,
    origin::Origin,
    run_dirs::RunDirs,
    runner_messages::Orders,
    snapshot::{Pasts, ResumedMemory, Shape, VmSnapshot},
};
use crate::{domain::principal::Principal, network::Guest};

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct LaunchPlan {
    /// The owner of the environment.
    pub(super) owner: Principal,
    /// The path of this binary.
    pub(super) runner: OsString,
    /// The runner's orders. The owner creates the files of the run folder to which the orders refer, such as the
    /// scratch disk.
    pub(super) orders: Orders,
    /// The guest's host name.
    pub(super) hostname: String,
    pub(super) boot: BootConfig,
    /// The machine's network, if it has one.
    pub(super) egress: Option<Guest>,
    /// Whether the output of the VMM is logged as it arrives, not only after a failure.
    pub(super) shows_log: bool,
    pub(super) disk_mib: u32,
    /// The space that must remain free on the disk of the run folder.
    pub(super) reserve: DiskReserve,
    /// Timeout from the start of the runner to the end of the agent's handshake.
    pub(super) boot_timeout: Duration,
    pub(super) start: Start,
    pub(super) disks: Arc<Disks>,
    /// The properties that a machine must share with a snapshot of this one.
    pub(super) shape: Shape,
    pub(super) origin: Arc<Origin>,
    /// The folder for images of saved machines.
    pub(super) image_pool: PathBuf,
    /// The parent of the folders of snapshots.
    pub(super) run_dirs: Arc<RunDirs>,
    /// The lease prevents the eviction of the image until the machine has ended.
    pub(super) image: MachineImage,
}

/// The state from which the machine starts.
#[derive(Debug)]
pub(super) enum Start {
    /// The guest boots.
    Boot {
        root: InitialRoot,
        /// The disk of an earlier machine; `None` for an empty one.
        disk: Option<Arc<VmSnapshot>>,
        /// The guest's memory, for a back end that takes it from a file.
        memory: Option<MemoryFile>,
    },
    /// The guest continues with the memory of a snapshot.
    Memory {
        memory: ResumedMemory,
        /// `None` once the machine has its own disk.
        disk: Option<Arc<VmSnapshot>>,
    },
}

impl Start {
    pub(super) fn pasts(&self) -> Pasts {
        match self {
            Self::Boot { .. } => Pasts::NONE,
            Self::Memory { memory, .. } => memory.pasts,
        }
    }

    /// The snapshot from which the machine copies its disk.
    pub(super) fn disk(&self) -> Option<&Arc<VmSnapshot>> {
        match self {
            Self::Boot { disk, .. } | Self::Memory { disk, .. } => disk.as_ref(),
        }
    }

    /// Releases the snapshot, once the machine has its own disk.
    pub(super) fn release_disk(&mut self) {
        match self {
            Self::Boot { disk, .. } | Self::Memory { disk, .. } => *disk = None,
        }
    }

    /// The file of the guest's memory, and whether other machines use it; `None` for a back end without such a file.
    pub(super) fn memory(&self) -> Option<(&MemoryFile, bool)> {
        match self {
            Self::Boot { memory, .. } => memory.as_ref().map(|memory| (memory, false)),
            Self::Memory { memory, .. } => Some((&memory.guest, memory.is_shared)),
        }
    }

    /// The files that the runner needs.
    pub(super) fn files(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Boot { memory, .. } => memory.iter().map(AsFd::as_fd).collect(),
            Self::Memory { memory, .. } => vec![memory.guest.as_fd(), memory.devices.as_fd()],
        }
    }
}

/// The root file system in which the guest's first process starts.
#[derive(Debug)]
pub(super) enum InitialRoot {
    /// An initramfs file. It starts with the archive that all machines share.
    Initramfs { file: &'static str, shared: Arc<SharedRoot> },
    /// The owner writes only the boot configuration to a file. The runner creates the rest of the root in memory.
    FromRunner { boot: &'static str },
}
