// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The settings of machines.

use std::{ffi::OsString, path::PathBuf, sync::Arc};

use waggle_shared::disk_reserve::DiskReserve;

use super::{backend::WantedBackend, kernel_arguments::KernelArguments};
use crate::{domain::defences::Relaxed, network::Gateway};

/// Subfolder of the data folder for unpacked firmware, and for the kernel of QEMU's guests.
const FIRMWARE_FOLDER: &str = "firmware";

/// Settings of [`Vms`](super::Vms).
#[derive(Clone, Debug)]
pub struct VmSettings {
    /// Parent of the run folders.
    pub data_dir: PathBuf,
    /// The space that must remain free on the data folder's disk.
    pub reserve: DiskReserve,
    /// The back end that the operator chose.
    pub backend: WantedBackend,
    /// Path of libkrunfw or of its folder; if unset, the embedded library or a default folder is used.
    pub firmware: Option<PathBuf>,
    /// Log level of the programs that run machines, 0 to 5.
    pub log_level: u8,
    /// A vmlinux for QEMU's guests, instead of the kernel in libkrunfw.
    pub kernel: Option<PathBuf>,
    /// Additional arguments for the kernel of QEMU's guests.
    pub kernel_arguments: Option<KernelArguments>,
    /// A path, or a name to look up in `PATH`; usually `qemu-system-x86_64`.
    pub qemu: PathBuf,
    /// Carries the network connections of all machines.
    pub gateway: Arc<Gateway>,
    /// PEM certificates that guests trust in addition to their own; may be empty.
    pub ca_bundle: String,
    /// The defences inside guests that are switched off.
    pub relaxed: Relaxed,
    pub templates: TemplateSettings,
    /// The program to execute as runner: [`VmSettings::THIS_BINARY`] except in tests.
    pub runner: OsString,
}

impl VmSettings {
    /// The binary of this process, even if its file has been replaced since the start.
    pub const THIS_BINARY: &str = "/proc/self/exe";

    pub(super) fn firmware_dir(&self) -> PathBuf {
        self.data_dir.join(FIRMWARE_FOLDER)
    }
}

/// Limits of the templates.
#[derive(Clone, Copy, Debug)]
pub struct TemplateSettings {
    /// Maximum number of templates; 0 means that all machines boot.
    pub count: usize,
    /// Maximum memory that all templates occupy, in bytes. A template also keeps pages that its machines use.
    pub bytes: u64,
    /// Whether machines of different callers start from the same template.
    pub are_shared: bool,
    /// Whether the interpreters run once before a template is taken.
    pub are_warm: bool,
}

impl TemplateSettings {
    /// All machines boot.
    pub const NONE: Self = Self { count: 0, bytes: 0, are_shared: false, are_warm: false };
}
