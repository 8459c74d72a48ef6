// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The checks of `waggle doctor`. Most of them call the same code as the server's checks at its start.

use tokio::task::spawn_blocking;
use waggle_images::{cache::ImageStore, reference::ImageRef};
use waggle_shared::{causes::chain, disk_reserve::DiskReserve};

use super::{
    fix::{Fix, fix},
    resources,
};
use crate::{
    cli::{
        host_memory::AllMachines,
        open_machines,
        serve::{check_image, tls_files},
    },
    config::{Folders, Settings},
    data_folder::DataFolder,
    domain::runtime::ByRuntime,
    machines::{
        CheckOutcome, Survey,
        disks::{self, Disks},
    },
    saved::SavedUsage,
};

const MIB: u64 = 1024 * 1024;

/// A check and its outcome.
#[derive(Clone, Debug)]
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) outcome: CheckOutcome,
    /// Whether machines on this host need the checked thing.
    pub(super) needed: bool,
    /// The purpose of the checked thing.
    pub(super) why: &'static str,
    /// The fix, unless the check succeeded.
    pub(super) fix: Option<Fix>,
}

impl Check {
    fn new(name: &'static str, needed: bool, outcome: CheckOutcome, why: &'static str) -> Self {
        let fix = fix(name, &outcome);
        Self { name, outcome, needed, why, fix }
    }

    /// Whether machines cannot run until this check succeeds.
    pub(super) fn is_blocking(&self) -> bool {
        self.needed && !matches!(self.outcome, CheckOutcome::Works(_))
    }
}

/// Runs all checks. Returns the checks, and the back end or the reason why no back end works.
pub(super) async fn all(
    settings: &Settings,
    folders: &Folders,
    images: &ByRuntime<ImageRef>,
) -> (Result<String, String>, Vec<Check>) {
    let survey = Survey::of(&open_machines::vm_settings(settings, folders)).await;
    let needs = survey.needs();
    let mkfs = match disks::mkfs_version().await {
        Ok(version) => CheckOutcome::Works(version),
        Err(disks::DiskFault::MkfsMissing) => CheckOutcome::Missing("found no mkfs.ext4".to_owned()),
        Err(fault) => CheckOutcome::Broken(chain(&fault)),
    };
    let backend = survey.backend.as_ref().map(ToString::to_string).map_err(Clone::clone);
    let mut checks = vec![
        Check::new("guest agent", true, survey.agent, "runs the calls inside each machine"),
        Check::new(
            "KVM device",
            needs.kvm,
            survey.kvm_device,
            "lets guests run on the processor instead of an emulation",
        ),
        Check::new("KVM guests", needs.kvm, survey.kvm, "the KVM device may open but fail to run a guest"),
        Check::new("libkrunfw", needs.firmware, survey.firmware, "contains the guests' kernel"),
        Check::new("QEMU", needs.qemu, survey.qemu, "runs machines where libkrun cannot"),
        Check::new(
            "guest kernel",
            needs.qemu,
            survey.kernel,
            "the kernel of QEMU's guests, which is made from libkrunfw unless WAGGLE_KERNEL is set",
        ),
        Check::new("mkfs.ext4", true, mkfs, "creates the scratch disks"),
        Check::new("user namespaces", false, survey.namespaces, "keep an escaped guest away from the server's files"),
        Check::new(
            "control group",
            false,
            resources::control_group(),
            "can limit the memory and processor time of all machines",
        ),
        Check::new(
            "memory",
            true,
            resources::memory(&settings.sizes()),
            "each machine takes memory from this host as programs use it",
        ),
        Check::new(
            "memory of all",
            false,
            resources::memory_of_all(AllMachines::of(settings)),
            "the kernel ends machines when the memory of this host runs out",
        ),
    ];
    checks.extend(tls_check(settings));
    checks.extend(folder_checks(folders, settings.image_store.reserve()).await);
    checks.push(saved_check(settings, folders).await);
    checks.extend(image_checks(images, &pulled(folders).await));
    (backend, checks)
}

/// Checks the certificate and its key, if the server has TLS.
fn tls_check(settings: &Settings) -> Option<Check> {
    let files = tls_files(settings)?;
    let outcome = match files.read() {
        Ok(_) => CheckOutcome::Works(files.certificate.display().to_string()),
        Err(fault) => CheckOutcome::Broken(chain(&fault)),
    };
    Some(Check::new("TLS", false, outcome, "encrypts the connections of clients; the server does not start without it"))
}

/// Checks whether the folders can be opened and have free space.
async fn folder_checks(folders: &Folders, reserve: DiskReserve) -> Vec<Check> {
    let (data, cache) = (folders.data.clone(), folders.images.clone());
    let outcomes = spawn_blocking(move || {
        let data_outcome = match DataFolder::check(&data) {
            Ok(()) => match Disks::open(&data) {
                Ok(_) => resources::free_space(&data, reserve),
                Err(fault) => CheckOutcome::Broken(chain(&fault)),
            },
            Err(fault) => CheckOutcome::Broken(chain(&fault)),
        };
        let cache_outcome = match ImageStore::open(&cache) {
            Ok(_) => resources::free_space(&cache, reserve),
            Err(fault) => CheckOutcome::Broken(chain(&fault)),
        };
        (data_outcome, cache_outcome)
    });
    let (data, cache) = outcomes.await.unwrap_or_else(|fault| {
        let broken = CheckOutcome::Broken(fault.to_string());
        (broken.clone(), broken)
    });
    vec![
        Check::new("data folder", true, data, "holds running machines and their disks"),
        Check::new("image folder", true, cache, "holds prepared images"),
    ]
}

/// Shows how many environments are saved, and the limit of their space.
async fn saved_check(settings: &Settings, folders: &Folders) -> Check {
    let data = folders.data.clone();
    let (saved, max_gb) = (spawn_blocking(move || SavedUsage::of(&data)).await, settings.saved.saved_max_gb);
    let outcome = match saved {
        Ok(Ok(SavedUsage { entries, bytes })) => {
            CheckOutcome::Works(format!("{entries} with {} MiB; saved ones may have {max_gb} GiB", bytes.div_ceil(MIB)))
        }
        Ok(Err(fault)) => CheckOutcome::Broken(chain(&fault)),
        Err(fault) => CheckOutcome::Broken(fault.to_string()),
    };
    Check::new("saved environments", false, outcome, "the saved and suspended environments outlive the server")
}

/// The references of the images in the cache.
async fn pulled(folders: &Folders) -> Vec<String> {
    let cache = folders.images.clone();
    let listed = spawn_blocking(move || ImageStore::open(&cache).map(|store| store.list()));
    // If the cache does not open, the check of the image folder reports the error.
    let listed = listed.await.ok().and_then(Result::ok).unwrap_or_default();
    listed.into_iter().flat_map(|image| image.references).collect()
}

/// Checks the image of each runtime. A missing image disables only its runtime. If all images are missing, no machine
/// can run.
fn image_checks(images: &ByRuntime<ImageRef>, pulled: &[String]) -> Vec<Check> {
    let named = [("image python", &images.python), ("image node", &images.node), ("image shell", &images.shell)];
    let outcomes = named.map(|(name, image)| (name, image, check_image(image)));
    let needed = outcomes.iter().all(|(_, _, outcome)| outcome.is_err());
    let checks = outcomes.map(|(name, image, outcome)| {
        let describe = || match image {
            ImageRef::Registry(_) if !pulled.contains(&image.to_string()) => format!("{image}, not pulled yet"),
            ImageRef::Registry(_) | ImageRef::Layout(_) | ImageRef::Archive(_) => image.to_string(),
        };
        let outcome = outcome.map_or_else(CheckOutcome::Missing, |()| CheckOutcome::Works(describe()));
        Check::new(name, needed, outcome, "the image of environments with this runtime")
    });
    checks.into()
}
