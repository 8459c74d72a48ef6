// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What the host and a runner tell each other, as one line of JSON each, over the socket that is the runner's stdin.
//!
//! ```text
//!  host ── Orders ──▶ runner         the first line; then the host only holds the socket open: its end is the
//!  host ◀── Report ── runner         runner's order to end everything
//! ```

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::confine::Namespaces;

/// Largest line in bytes; a dozen paths of 4096 bytes fit.
pub(super) const LINE_BYTES_MAX: u64 = 64 * 1024;

/// What a runner is to run.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Orders {
    /// Its working folder, which it locks, and removes when everything has ended.
    pub(super) run_dir: PathBuf,
    /// Whether its programs get namespaces of their own; where they cannot have them, it does not run.
    pub(super) namespaces: Namespaces,
    /// The machine.
    pub(super) machine: MachineConfig,
    /// What makes it.
    pub(super) maker: Maker,
}

/// One machine, whatever makes it.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct MachineConfig {
    /// Virtual CPUs.
    pub(super) cpus: u32,
    /// Memory in MiB.
    pub(super) memory_mib: u32,
    /// The root file system, read-only.
    pub(super) image: PathBuf,
    /// The writable disk.
    pub(super) scratch: PathBuf,
}

/// What makes a machine, and what that needs besides.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) enum Maker {
    /// Two programs.
    Qemu(QemuConfig),
    /// libkrun, which is in this binary.
    Krun(KrunConfig),
}

/// What QEMU needs.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct QemuConfig {
    /// The QEMU program.
    pub(super) qemu: PathBuf,
    /// The program that serves the virtual socket device.
    pub(super) vhost_device_vsock: PathBuf,
    /// What runs the guest's instructions.
    pub(super) accelerator: Accelerator,
    /// The bzImage.
    pub(super) kernel: PathBuf,
    /// The initial root.
    pub(super) initramfs: PathBuf,
    /// How much its programs say, 0 to 5; their errors always.
    pub(super) log_level: u8,
}

/// What libkrun needs.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct KrunConfig {
    /// libkrunfw, which holds the kernel.
    pub(super) firmware: PathBuf,
    /// The file with the guest's boot configuration.
    pub(super) boot: PathBuf,
    /// How much libkrun says, 0 to 5; its errors always.
    pub(super) log_level: u8,
}

/// What runs the guest's instructions.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) enum Accelerator {
    /// The processor, by KVM.
    Kvm,
    /// QEMU's translator.
    Emulation {
        /// Frequency of the host's time stamp counter in kHz.
        tsc_khz: u32,
    },
}

/// How a machine came to its end, or why it never ran.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, thiserror::Error)]
pub(super) enum Report {
    /// A program could not be started, or a step before it failed.
    #[error("failed to {step}: {cause}")]
    NotStarted {
        /// What was tried.
        step: String,
        /// The system's reason.
        cause: String,
    },
    /// A program was stopped by a signal, which leaves its machine neither dead nor alive.
    #[error("{program} was stopped by a signal")]
    Stopped {
        /// Which of them.
        program: String,
    },
    /// The kernel killed a program for want of memory.
    #[error("{program} ended: the host's control group ran out of memory, and the kernel killed it")]
    OutOfMemory {
        /// Which of them.
        program: String,
    },
    /// A program ended.
    #[error("{program} ended: {how}")]
    Ended {
        /// Which of them.
        program: String,
        /// `exit status: 1`, `signal: 9 (SIGKILL)`.
        how: String,
    },
}
