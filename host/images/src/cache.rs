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
mod verifier;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::task::spawn_blocking;
use waggle_shared::disk_reserve::DiskReserve;

pub use self::{
    evict::{EvictionRules, Removed},
    fault::PrepareFault,
    inventory::{CachedImage, RemoveFault, UnknownImage, Verified, VerifyFault},
    lease::{Lease, LeaseHolder},
    prepare::PreparedImage,
    pull::Resolve,
};
use self::{folder::Cache, jobs::Jobs, prepare::Preparer};
use crate::{
    progress::Progress,
    reference::ImageRef,
    registry::{Registries, RegistrySettings},
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
    preparer: Arc<Preparer>,
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
        let cache = Arc::new(Cache::open(cache_dir, reserve)?);
        let preparer = Arc::new(Preparer::new(cache, Registries::new(registries), rules));
        Ok(Self { preparer, jobs: Jobs::default() })
    }

    /// Starts to verify each merged image in the background at its first use. A damaged one is removed, which the log
    /// says. Verifications end when the store is dropped.
    pub fn verify_in_background(&self) {
        self.preparer.verify_in_background();
    }

    /// Verifies the merged image with this reference or digest, and removes it if it is damaged. Machines that use it
    /// keep the file. Blocks.
    ///
    /// # Errors
    /// [`VerifyFault`] if the cache does not have the image, or its file cannot be read or removed.
    pub fn verify(&self, name: &str) -> Result<Verified, VerifyFault> {
        inventory::verify(&self.preparer.cache, name)
    }

    /// Returns the image as a file. Pulls the image and merges its layers if the cache does not have the file.
    ///
    /// # Errors
    /// A fault of the reference, the registry, the image or the cache.
    pub async fn prepare(&self, image: &ImageRef) -> Result<PreparedImage, Arc<PrepareFault>> {
        self.prepare_with(image, Resolve::IfUnknown, &|_| {}).await
    }

    /// Like [`Self::prepare`], and calls `on_progress` as the work proceeds.
    ///
    /// Callers with the same image and `resolve` share one job. Dropping the last caller's future cancels the job.
    ///
    /// # Errors
    /// A fault of the reference, the registry, the image or the cache.
    pub async fn prepare_with(
        &self,
        image: &ImageRef,
        resolve: Resolve,
        on_progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<PreparedImage, Arc<PrepareFault>> {
        let job = self.jobs.join((image.clone(), resolve), |progress| {
            let (preparer, image) = (Arc::clone(&self.preparer), image.clone());
            async move { preparer.prepare(&image, resolve, &progress).await }
        });
        job.outcome(on_progress).await
    }

    /// Evicts images by the rules of the settings. Blocks.
    #[must_use]
    pub fn evict(&self) -> Removed {
        self.preparer.evict()
    }

    /// Evicts images now and once per hour. Never returns.
    pub async fn evict_regularly(&self) {
        loop {
            let preparer = Arc::clone(&self.preparer);
            // `evict` logs the removed files. After a panic, the next run may still succeed.
            let _ = spawn_blocking(move || preparer.evict()).await;
            tokio::time::sleep(EVICTION_INTERVAL).await;
        }
    }

    /// Lists all images, sorted by their references. Blocks.
    #[must_use]
    pub fn list(&self) -> Vec<CachedImage> {
        inventory::list(&self.preparer.cache)
    }

    /// Finds an image by its reference, or by an unambiguous prefix of its digest. Blocks.
    ///
    /// # Errors
    /// [`UnknownImage`] if the cache does not have the image.
    pub fn inspect(&self, name: &str) -> Result<CachedImage, UnknownImage> {
        inventory::find(&self.preparer.cache, name)
    }

    /// Removes a reference, and also the merged image if no reference is left. Given a digest, removes the merged image
    /// and all its references. Also removes blobs that no image needs. Blocks.
    ///
    /// # Errors
    /// [`RemoveFault`] if the image is not in the cache, a machine uses the image, or its file cannot be removed.
    pub fn remove(&self, name: &str) -> Result<Removed, RemoveFault> {
        inventory::remove(&self.preparer.cache, name)
    }

    /// Evicts images by these rules, and removes blobs that no image needs. Blocks.
    #[must_use]
    pub fn prune(&self, rules: &EvictionRules) -> Removed {
        inventory::prune(&self.preparer.cache, rules)
    }
}
