// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Opens the image store and the machines according to the settings.

use std::{error::Error, path::PathBuf, sync::Arc};

use tokio::task::spawn_blocking;
use waggle_images::cache::{ImageStore, ImageStoreSettings, PrepareFault};

use crate::{
    config::{Folders, Settings, process_variable},
    data_folder::DataFolder,
    machines::{
        self,
        disks::{self, DiskFault, Disks},
    },
    network::{Gateway, ca_bundle, flows_max},
};

/// A folder of the server could not be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum FolderFault {
    #[error("failed to use the data folder {}; set another one with --data-dir or WAGGLE_DATA_DIR", path.display())]
    Data { path: PathBuf, source: DiskFault },
    #[error(
        "failed to use the image folder {}; set another one with --image-cache-dir or WAGGLE_IMAGE_CACHE_DIR",
        path.display()
    )]
    Images { path: PathBuf, source: PrepareFault },
}

/// Opens the image store; waits for the locks of other processes.
///
/// # Errors
/// [`FolderFault::Images`].
pub(super) fn open_images(settings: ImageStoreSettings) -> Result<ImageStore, FolderFault> {
    let path = settings.cache_dir.clone();
    ImageStore::with_settings(settings).map_err(|source| FolderFault::Images { path, source })
}

/// The machines, and what they use.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) machines: machines::Vms,
    pub(super) images: Arc<ImageStore>,
    /// Must be kept while the data folder is in use.
    pub(super) data_folder: DataFolder,
}

/// Opens the data folder, the machines and the image store.
///
/// # Errors
/// The first thing that is missing or broken. Each error says what to do.
pub(super) async fn open(settings: &Settings, folders: &Folders) -> Result<Opened, Box<dyn Error>> {
    // A VMM that a guest has taken over may run as the same user.
    machines::hide_memory()?;
    // Before everything else that reads or changes the folder.
    let data = folders.data.clone();
    let data_folder = spawn_blocking(move || DataFolder::open(&data)).await??;
    let ca_bundle = settings.ca_bundle.as_deref().map(ca_bundle::read).transpose()?.unwrap_or_default();
    let gateway = Arc::new(Gateway::new(settings.proxy()?, flows_max()).with_rates(settings.rates()));
    let vm_settings = machines::VmSettings { ca_bundle, gateway, ..vm_settings(settings, folders) };
    let (store, data) = (settings.image_store.store(&process_variable)?, folders.data.clone());
    // The store and the disks wait for the locks of other servers.
    let images = Arc::new(spawn_blocking(move || open_images(store)).await??);
    let disks = spawn_blocking(move || Disks::open(&data).map_err(|source| FolderFault::Data { path: data, source }));
    let disks = disks.await??;
    let vms = machines::Vms::open(vm_settings, Arc::clone(&images), disks).await?;
    // Checks mkfs.ext4 now rather than at the first environment. This check is last, since a missing hypervisor is the
    // more important error.
    disks::mkfs_version().await?;
    Ok(Opened { machines: vms, images, data_folder })
}

/// Returns the settings of machines without the certificates and the proxy, since reading their files may fail.
pub(super) fn vm_settings(settings: &Settings, folders: &Folders) -> machines::VmSettings {
    machines::VmSettings {
        data_dir: folders.data.clone(),
        reserve: settings.image_store.reserve(),
        backend: settings.backend,
        firmware: settings.firmware.clone(),
        log_level: settings.log_level,
        kernel: folders.kernel.clone(),
        kernel_arguments: settings.kernel_args.clone(),
        qemu: "qemu-system-x86_64".into(),
        gateway: Arc::new(Gateway::new(None, flows_max()).with_rates(settings.rates())),
        ca_bundle: String::new(),
        relaxed: settings.relax.clone(),
        templates: settings.templates.settings(),
        runner: machines::VmSettings::THIS_BINARY.into(),
    }
}
