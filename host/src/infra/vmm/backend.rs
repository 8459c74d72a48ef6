// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What runs guests on this host: found out once, when the server starts.

use std::{ffi::OsStr, fmt};

use tokio::task::{JoinError, spawn_blocking};

use super::{
    probe::{self, Kvm},
    runner_messages::Accelerator,
    tsc,
};

/// What runs guests here, and why; its text form is for people.
#[derive(Clone, Debug)]
pub struct Backend {
    accelerator: Accelerator,
    kvm: Kvm,
}

impl Backend {
    /// Probes KVM and measures the clock, side by side; takes a second at most.
    pub(super) async fn find(runner: &OsStr) -> Result<Self, JoinError> {
        let (kvm, tsc_khz) = tokio::join!(probe::probe(runner), spawn_blocking(tsc::measure_khz));
        let accelerator = match &kvm {
            Kvm::Usable => Accelerator::Kvm,
            Kvm::Unusable(_) => Accelerator::Emulation { tsc_khz: tsc_khz? },
        };
        Ok(Self { accelerator, kvm })
    }

    pub(super) fn accelerator(&self) -> &Accelerator {
        &self.accelerator
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.accelerator {
            Accelerator::Kvm => f.write_str("qemu with KVM"),
            Accelerator::Emulation { .. } => write!(f, "qemu, software emulation ({})", self.kvm),
        }
    }
}
