// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The messages between the host and a runner: lines of JSON over the socket that is the runner's stdin. The host
//! attaches open files to its lines. When it closes the socket, the runner stops the machine.
//!
//! ```text
//!  host ── Orders ──▶ runner    with the files of the machine's memory
//!  host ── Command ─▶ runner    any number of times, while the machine runs
//!  host ◀─ Answer ─── runner
//!  host ◀─ Report ─── runner    if the machine ends by itself
//! ```

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::confine::Namespaces;

/// Maximum length of a line in bytes. A dozen paths of 4096 bytes fit.
pub(super) const LINE_BYTES_MAX: u64 = 64 * 1024;

/// Maximum size of the state of a machine's devices, in bytes. With 16 processors it has about 300 KB.
pub(super) const DEVICES_BYTES_MAX: u64 = 4 << 20;

/// The host's message: the machine that the runner must run.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Orders {
    /// The runner's working folder. The runner locks the folder, and removes it at the end.
    pub(super) run_dir: PathBuf,
    /// Whether the machine's programs have their own namespaces. If namespaces are required but cannot be created, the
    /// machine does not start.
    pub(super) namespaces: Namespaces,
    pub(super) machine: MachineConfig,
    /// The back end.
    pub(super) maker: Maker,
}

/// The part of a machine's configuration that is the same for all back ends.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct MachineConfig {
    pub(super) cpus: u32,
    pub(super) memory_mib: u32,
    /// The root file system, read-only.
    pub(super) image: PathBuf,
    /// The writable disk.
    pub(super) scratch: PathBuf,
}

/// The back end and its part of the configuration.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) enum Maker {
    Qemu(QemuConfig),
    /// A library that this binary contains.
    Krun(KrunConfig),
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct QemuConfig {
    pub(super) qemu: PathBuf,
    /// Whether the machine has a port for the egress link.
    pub(super) has_network: bool,
    pub(super) accelerator: Accelerator,
    pub(super) start: QemuStart,
    /// Log level of QEMU, 0 to 5. Errors are always logged.
    pub(super) log_level: u8,
}

/// The start of a guest of QEMU. The file of the guest's memory comes with the orders.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) enum QemuStart {
    Boot {
        /// An ELF file with a PVH entry.
        kernel: PathBuf,
        /// The operator's arguments for the kernel's command line.
        kernel_arguments: Option<String>,
        initramfs: PathBuf,
    },
    /// The guest continues from a snapshot. A second file, with the state of the devices, comes with the orders.
    Snapshot {
        /// Whether other machines use the same file of memory. The file is sealed then, and QEMU copies each page that
        /// the guest changes.
        is_shared: bool,
    },
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct KrunConfig {
    pub(super) library: Library,
    /// libkrunfw, which contains the kernel.
    pub(super) firmware: PathBuf,
    /// The file with the guest's boot configuration.
    pub(super) boot: PathBuf,
    /// Log level of the library, 0 to 5. Errors are always logged.
    pub(super) log_level: u8,
}

/// A library that turns its process into a machine.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) enum Library {
    Libkrun,
    /// `msb_krun`, a fork of libkrun. Only builds with the feature `msb` contain it.
    Msb,
}

impl Library {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Libkrun => "libkrun",
            Self::Msb => "msb_krun",
        }
    }
}

/// QEMU's method to execute the guest's instructions.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) enum Accelerator {
    Kvm,
    /// QEMU's software emulation, TCG.
    Emulation {
        /// Frequency of the host's time stamp counter in kHz.
        tsc_khz: u32,
    },
}

/// A command to a runner whose machine runs.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) enum Command {
    /// Stops the guest, and writes its state into the files that come with the command. The guest continues after a
    /// failure.
    Snapshot(SnapshotParts),
    /// Lets a stopped guest continue.
    Continue,
}

/// The parts of a snapshot, in the order of the files.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(super) struct SnapshotParts {
    /// Whether the memory is copied, after the state of the devices. Else the machine's own file has it.
    pub(super) memory: bool,
    /// Whether the scratch disk is copied. Else the machine's own file has it.
    pub(super) disk: bool,
    /// Whether the guest continues.
    pub(super) continues: bool,
}

/// The answer to a command.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) enum Answer {
    Done {
        /// The time for which the guest stood still, in microseconds, if it continues.
        stood_still_us: u64,
    },
    /// The step that failed, and why. The guest continues, or stands still as before.
    Failed(String),
    /// The guest could not be continued.
    StandsStill(String),
}

/// The reason why a machine ended or never ran.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, thiserror::Error)]
pub(super) enum Report {
    /// A program could not be started, or an earlier step failed.
    #[error("failed to {step}: {cause}")]
    NotStarted {
        /// The failed step; completes the sentence "failed to …".
        step: String,
        cause: String,
    },
    /// A signal such as SIGSTOP stopped a program. The machine could not continue, so the runner ended it.
    #[error("{program} was stopped by a signal")]
    Stopped { program: String },
    /// The kernel killed a program because memory ran out.
    #[error("{program} ended: the kernel killed it, because the host's control group ran out of memory")]
    OutOfMemory { program: String },
    #[error("{program} ended: {how}")]
    Ended {
        program: String,
        /// For example `exit status: 1` or `signal: 9 (SIGKILL)`.
        how: String,
    },
}
