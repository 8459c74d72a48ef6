// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The size of a machine, and the sizes that a client can choose.

use std::ops::RangeInclusive;

/// Minimum memory of a machine in MiB: below it, the kernel and the agent leave no room for programs.
pub const MEMORY_MIB_MIN: u32 = 128;

/// Minimum size of a scratch disk in MiB: the journal takes 16 MiB of it.
pub const DISK_MIB_MIN: u32 = 64;

/// The processors, memory and disk of a machine.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MachineSize {
    /// Number of virtual CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Size of the sparse scratch disk in MiB.
    pub disk_mib: u32,
}

/// The size of a machine whose client chooses none, and the largest size that a client can choose.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SizeLimits {
    pub default: MachineSize,
    pub max: MachineSize,
}

impl SizeLimits {
    /// Limits with which clients can choose smaller machines only.
    #[must_use]
    pub fn up_to(default: MachineSize) -> Self {
        Self { default, max: default }
    }

    #[must_use]
    pub fn cpus(&self) -> RangeInclusive<u32> {
        1..=self.max.cpus
    }

    #[must_use]
    pub fn memory_mib(&self) -> RangeInclusive<u32> {
        MEMORY_MIB_MIN..=self.max.memory_mib
    }

    #[must_use]
    pub fn disk_mib(&self) -> RangeInclusive<u32> {
        DISK_MIB_MIN..=self.max.disk_mib
    }
}
