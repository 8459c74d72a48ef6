// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What the doctor looks at, by the same looks as the server's start takes.

use tokio::task::spawn_blocking;

use super::{
    mend::{Mend, mend},
    place,
};
use crate::{
    causes::chain,
    cli::{open_machines, serve::image_is_there},
    config::{Folders, Settings},
    domain::{image::ImageRef, runtime::ByRuntime},
    images::cache::ImageStore,
    machines::{
        Look, Survey,
        disks::{self, Disks},
    },
};

/// One thing that was looked at.
#[derive(Clone, Debug)]
pub(super) struct Check {
    pub(super) name: &'static str,
    /// How it was found.
    pub(super) look: Look,
    /// Whether machines cannot run here without it.
    pub(super) needed: bool,
    /// What it is for.
    pub(super) why: &'static str,
    /// What mends it, unless it works.
    pub(super) mend: Option<Mend>,
}

impl Check {
    fn new(name: &'static str, needed: bool, look: Look, why: &'static str) -> Self {
        let mend = mend(name, &look);
        Self { name, look, needed, why, mend }
    }

    /// No machine runs before this is mended.
    pub(super) fn stands_in_the_way(&self) -> bool {
        self.needed && !matches!(self.look, Look::Works(_))
    }
}

/// Looks at everything; the first result is what runs machines here, or why nothing does.
pub(super) async fn all(
    settings: &Settings,
    folders: &Folders,
    images: &ByRuntime<ImageRef>,
) -> (Result<String, String>, Vec<Check>) {
    let survey = Survey::of(&open_machines::vm_settings(settings, folders)).await;
    let needs = survey.needs();
    let mkfs = match disks::mkfs_version().await {
        Ok(version) => Look::Works(version),
        Err(disks::DiskFault::MkfsMissing) => Look::Missing("found no mkfs.ext4".to_owned()),
        Err(fault) => Look::Broken(chain(&fault)),
    };
    let backend = survey.backend.as_ref().map(ToString::to_string).map_err(Clone::clone);
    let mut checks = vec![
        Check::new("guest agent", true, survey.agent, "it serves calls inside each machine"),
        Check::new(
            "KVM device",
            needs.kvm,
            survey.kvm_device,
            "guests run on the processor by it, not in an emulation",
        ),
        Check::new("KVM guests", needs.kvm, survey.kvm, "a device that opens may still run no guest"),
        Check::new(
            "libkrunfw",
            needs.firmware,
            survey.firmware,
            "it is the kernel of libkrun's guests, which start fastest",
        ),
        Check::new("QEMU", needs.qemu, survey.qemu, "it runs machines where libkrun does not"),
        Check::new(
            "vhost-device-vsock",
            needs.qemu,
            survey.vhost_device_vsock,
            "it gives QEMU's machines their socket",
        ),
        Check::new("guest kernel", needs.qemu, survey.kernel, "it is the kernel of QEMU's guests"),
        Check::new("mkfs.ext4", true, mkfs, "it makes the scratch disks"),
        Check::new(
            "user namespaces",
            false,
            survey.namespaces,
            "they keep a guest that broke out from the server's files",
        ),
        Check::new(
            "control group",
            false,
            place::control_group(),
            "it can bound the memory and the time of all machines",
        ),
        Check::new("memory", true, place::memory(settings.default_memory_mb), "each machine takes its own as it fills"),
    ];
    checks.extend(folder_checks(folders).await);
    checks.extend(image_checks(images, &pulled(folders).await));
    (backend, checks)
}

/// Opening them is what the server does first; whether there is room, the first machine would find out.
async fn folder_checks(folders: &Folders) -> Vec<Check> {
    let (data, cache) = (folders.data.clone(), folders.images.clone());
    let looks = spawn_blocking(move || {
        let data_look = match Disks::open(&data) {
            Ok(_) => place::room(&data),
            Err(fault) => Look::Broken(chain(&fault)),
        };
        let cache_look = match ImageStore::open(&cache) {
            Ok(_) => place::room(&cache),
            Err(fault) => Look::Broken(chain(&fault)),
        };
        (data_look, cache_look)
    });
    let (data, cache) = looks.await.unwrap_or_else(|fault| {
        let broken = Look::Broken(fault.to_string());
        (broken.clone(), broken)
    });
    vec![
        Check::new("data folder", true, data, "it holds machines while they run, and their disks"),
        Check::new("image folder", true, cache, "it holds images that have been prepared"),
    ]
}

/// The names of the images that are in the cache.
async fn pulled(folders: &Folders) -> Vec<String> {
    let cache = folders.images.clone();
    let listed = spawn_blocking(move || ImageStore::open(&cache).map(|store| store.list()));
    // A cache that does not open has been told.
    let listed = listed.await.ok().and_then(Result::ok).unwrap_or_default();
    listed.into_iter().flat_map(|image| image.references).collect()
}

/// A runtime without an image is no environment of that kind; without any there is nothing to boot.
fn image_checks(images: &ByRuntime<ImageRef>, pulled: &[String]) -> Vec<Check> {
    let named = [("image python", &images.python), ("image node", &images.node), ("image shell", &images.shell)];
    let looks = named.map(|(name, image)| (name, image, image_is_there(image)));
    let needed = looks.iter().all(|(_, _, look)| look.is_err());
    let checks = looks.map(|(name, image, look)| {
        let name_it = || match image {
            ImageRef::Registry(_) if !pulled.contains(&image.to_string()) => format!("{image}, which has to be pulled"),
            ImageRef::Registry(_) | ImageRef::Layout(_) | ImageRef::Archive(_) => image.to_string(),
        };
        let look = look.map_or_else(Look::Missing, |()| Look::Works(name_it()));
        Check::new(name, needed, look, "environments with this runtime are made of it")
    });
    checks.into()
}
