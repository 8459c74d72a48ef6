// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Settings of the machines.

use std::{ffi::OsString, path::PathBuf, sync::Arc};

use super::backend::WantedBackend;
use crate::{domain::defences::Relaxed, network::Gateway};

/// Firmware that is unpacked from this binary lies in this folder of the data folder.
const FIRMWARE_FOLDER: &str = "firmware";

/// Settings of [`Vms`](super::Vms).
#[derive(Clone, Debug)]
pub struct VmSettings {
    /// Run folders are made in here.
    pub data_dir: PathBuf,
    /// What runs machines.
    pub backend: WantedBackend,
    /// libkrunfw or its folder, if it is not to be searched.
    pub firmware: Option<PathBuf>,
    /// How much the programs that run machines say in the log, 0 to 5.
    pub log_level: u8,
    /// The folder with `vmlinuz` and `modules/`, for QEMU.
    pub kernel_dir: PathBuf,
    /// A path, or a name to search in `PATH`: usually `qemu-system-x86_64`.
    pub qemu: PathBuf,
    /// A path, or a name to search in `PATH`: usually `vhost-device-vsock`.
    pub vhost_device_vsock: PathBuf,
    /// What the machines' networks go through.
    pub gateway: Arc<Gateway>,
    /// Certificates in PEM that guests are to trust; may be empty.
    pub ca_bundle: String,
    /// Defences inside the guests that are off.
    pub relaxed: Relaxed,
    /// The program to execute as runner: this binary, [`VmSettings::THIS_BINARY`], except in tests.
    pub runner: OsString,
}

impl VmSettings {
    /// This process's binary, even if its file has been replaced meanwhile.
    pub const THIS_BINARY: &str = "/proc/self/exe";

    /// Where firmware that is in this binary is unpacked.
    pub(super) fn firmware_dir(&self) -> PathBuf {
        self.data_dir.join(FIRMWARE_FOLDER)
    }
}
