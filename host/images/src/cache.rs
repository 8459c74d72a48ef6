// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The image store: pulls and merges images, and caches them for the next start.
//!
//! ```text
//!  jobs ──▶ prepare ─┬─▶ pull ──┬─▶ folder ──▶ blobs, records, leases, locks
//!                    ├─▶ evict ─┤
//!          inventory ┴──────────┘
//!
//!  IMAGE_CACHE_DIR/
//!    blobs/sha256/<hex>           pulled manifests, configurations, layers
//!    records/<hex>.json           the manifest that a reference was resolved to, and the time
//!    merged-v4/sha256-<hex>.erofs one file per manifest, with its digest; locked shared while a machine uses it
//!    .lock                        locked shared to pull or merge, exclusively to remove blobs
//!    clients/                     the same again, for images that only clients have named; see `shelves`
//! ```
//!
//! A file is written under a temporary name and renamed once it is complete. Several servers can therefore share the
//! folder, and each server can be killed at any moment. A tag is resolved again only on request, so a start from a
//! cached image needs no network.

mod blobs;
mod evict;
mod fault;
mod folder;
mod inventory;
mod jobs;
mod keyed_locks;
mod lease;
mod prepare;
mod pull;
mod records;
mod shelves;
mod verifier;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::Semaphore, task::spawn_blocking};
use waggle_shared::disk_reserve::DiskReserve;

pub use self::{
    evict::{EvictionRules, Removed},
    fault::PrepareFault,
    inventory::{CachedImage, RemoveFault, UnknownImage, Verified, VerifyFault},
    lease::{Lease, LeaseHolder},
    prepare::PreparedImage,
    pull::Resolve,
};
use self::{jobs::Jobs, prepare::Preparer, shelves::Shelves};
use crate::{
    merge::MERGES_AT_ONCE,
    progress::Progress,
    reference::{ImageRef, PullRights},
    registry::RegistrySettings,
};

const EVICTION_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// Settings of the image store.
#[derive(Clone, Debug, Default)]
pub struct ImageStoreSettings {
    pub cache_dir: PathBuf,
    pub registries: RegistrySettings,
    pub rules: EvictionRules,
    /// The space that must remain free on the cache's disk.
    pub reserve: DiskReserve,
}

/// Prepares images and caches them.
#[derive(Debug)]
pub struct ImageStore {
    shelves: Arc<Shelves>,
    operator: Arc<Preparer>,
    clients: Arc<Preparer>,
    jobs: Jobs,
}

impl ImageStore {
    /// Opens the store in a folder, without limits of age or size. Creates the folder if absent.
    ///
    /// # Errors
    /// If the folder cannot be created or is not writable.
    pub fn open(cache_dir: impl AsRef<Path>) -> Result<Self, PrepareFault> {
        let cache_dir = cache_dir.as_ref().to_owned();
        Self::with_settings(ImageStoreSettings { cache_dir, ..ImageStoreSettings::default() })
    }

    /// Opens the store, and removes unfinished files of dead processes. Blocks on file locks of other processes.
    ///
    /// # Errors
    /// If the folder cannot be created or is not writable.
    pub fn with_settings(settings: ImageStoreSettings) -> Result<Self, PrepareFault> {
        let ImageStoreSettings { cache_dir, registries, rules, reserve } = settings;
        let shelves = Arc::new(Shelves::open(&cache_dir, reserve)?);
        let merges = Arc::new(Semaphore::new(MERGES_AT_ONCE));
        let preparer = |rights| {
            let (shelves, merges) = (Arc::clone(&shelves), Arc::clone(&merges));
            Arc::new(Preparer::new(rights, shelves, registries.clone(), rules, merges))
        };
        let (operator, clients) = (preparer(PullRights::Operator), preparer(PullRights::Public));
        Ok(Self { shelves, operator, clients, jobs: Jobs::default() })
    }

    /// Starts to verify each merged image in the background at its first use. A damaged one is removed, which the log
    /// says. Verifications end when the store is dropped.
    pub fn verify_in_background(&self) {
        self.operator.verify_in_background();
        self.clients.verify_in_background();
    }

    /// Verifies the merged image with this reference or digest, and removes it if it is damaged. Machines that use it
    /// keep the file. Blocks.
    ///
    /// # Errors
    /// [`VerifyFault`] if the cache does not have the image, or its file cannot be read or removed.
    pub fn verify(&self, name: &str) -> Result<Verified, VerifyFault> {
        match inventory::verify(&self.shelves.operator, name) {
            Err(VerifyFault::Unknown(_)) => inventory::verify(&self.shelves.clients, name),
            found => found,
        }
    }

    /// Returns an image of the operator as a file. Pulls the image and merges its layers if the cache does not have the
    /// file.
    ///
    /// # Errors
    /// A fault of the reference, the registry, the image or the cache.
    pub async fn prepare(&self, image: &ImageRef) -> Result<PreparedImage, Arc<PrepareFault>> {
        self.prepare_with(image, Resolve::IfUnknown, &|_| {}).await
    }

    /// Like [`Self::prepare`], and calls `on_progress` as the work proceeds.
    ///
    /// # Errors
    /// A fault of the reference, the registry, the image or the cache.
    pub async fn prepare_with(
        &self,
        image: &ImageRef,
        resolve: Resolve,
        on_progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<PreparedImage, Arc<PrepareFault>> {
        self.prepare_as(PullRights::Operator, image, resolve, on_progress).await
    }

    /// Like [`Self::prepare_with`], for an image that may be pulled only with these rights.
    ///
    /// Callers with the same image, rights and `resolve` share one job. Dropping the last caller's future cancels the
    /// job.
    ///
    /// # Errors
    /// A fault of the reference, the registry, the image or the cache.
    pub async fn prepare_as(
        &self,
        rights: PullRights,
        image: &ImageRef,
        resolve: Resolve,
        on_progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<PreparedImage, Arc<PrepareFault>> {
        let preparer = match rights {
            PullRights::Operator => &self.operator,
            PullRights::Public => &self.clients,
        };
        let job = self.jobs.join((image.clone(), rights, resolve), |progress| {
            let (preparer, image) = (Arc::clone(preparer), image.clone());
            async move { preparer.prepare(&image, resolve, &progress).await }
        });
        job.outcome(on_progress).await
    }

    /// Evicts images by the rules of the settings. Blocks.
    #[must_use]
    pub fn evict(&self) -> Removed {
        self.operator.evict()
    }

    /// Evicts images now and once per hour. Never returns.
    pub async fn evict_regularly(&self) {
        loop {
            let preparer = Arc::clone(&self.operator);
            // `evict` logs the removed files. After a panic, the next run may still succeed.
            let _ = spawn_blocking(move || preparer.evict()).await;
            tokio::time::sleep(EVICTION_INTERVAL).await;
        }
    }

    /// Lists all images, those of the operator first, each sorted by their references. Blocks.
    #[must_use]
    pub fn list(&self) -> Vec<CachedImage> {
        let of_clients = inventory::list(&self.shelves.clients).into_iter();
        let of_clients = of_clients.map(|image| CachedImage { of_clients: true, ..image });
        inventory::list(&self.shelves.operator).into_iter().chain(of_clients).collect()
    }

    /// Finds an image by its reference, or by an unambiguous prefix of its digest. Blocks.
    ///
    /// # Errors
    /// [`UnknownImage`] if the cache does not have the image.
    pub fn inspect(&self, name: &str) -> Result<CachedImage, UnknownImage> {
        inventory::find(&self.list(), name)
    }

    /// Removes a reference, and also the merged image if no reference is left. Given a digest, removes the merged image
    /// and all its references. An image that clients have named, too, is removed from both shelves. Also removes blobs
    /// that no image needs. Blocks.
    ///
    /// # Errors
    /// [`RemoveFault`] if the image is not in the cache, a machine uses the image, or its file cannot be removed.
    pub fn remove(&self, name: &str) -> Result<Removed, RemoveFault> {
        let [operator, clients] = self.shelves.all().map(|cache| inventory::remove(cache, name));
        match (operator, clients) {
            (Ok(mut removed), Ok(more)) => {
                removed += more;
                Ok(removed)
            }
            (Ok(removed), Err(RemoveFault::Unknown(_))) | (Err(RemoveFault::Unknown(_)), Ok(removed)) => Ok(removed),
            (Err(RemoveFault::Unknown(_)), Err(fault)) | (Err(fault), _) | (Ok(_), Err(fault)) => Err(fault),
        }
    }

    /// Evicts images by these rules, and removes blobs that no image needs. Blocks.
    #[must_use]
    pub fn prune(&self, rules: &EvictionRules) -> Removed {
        self.shelves.by_rules(rules, inventory::prune)
    }
}
