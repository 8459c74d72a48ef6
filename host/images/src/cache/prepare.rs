// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Prepares the merged image of a reference. Pulls and merges only the parts that the cache does not have.

use std::{
    error::Error,
    io,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use oci_spec::image::Descriptor;
use tokio::{sync::Semaphore, task::spawn_blocking};

use super::{
    evict::{EvictionRules, Removed},
    fault::{PrepareFault, file_fault},
    folder::Cache,
    lease::{self, Lease},
    pull::{Downloads, MERGE_BYTES_PER_LAYER_BYTE, Puller, Resolve},
    shelves::Shelves,
    verifier::Verifier,
};
use crate::{
    merge::{FoundImage, ImageAgent, ImageFault, MergeControl},
    progress::{ProgressSender, Step, report_while},
    reference::{ImageRef, PullRights},
    registry::{Registries, RegistrySettings},
};

/// An image that machines can start from.
#[derive(Clone, Debug)]
pub struct PreparedImage {
    /// The file of the root file system. All machines of the image share the file and never write to it.
    pub erofs: PathBuf,
    /// The image's environment variables, names and values.
    pub env: Vec<(String, String)>,
    /// The image's working directory: an absolute path, which need not exist.
    pub working_directory: Option<String>,
    /// The image's own guest agent, if it declares one.
    pub agent: Option<ImageAgent>,
    /// Prevents the eviction of the file by this and other processes, until the last clone drops.
    pub lease: Arc<Lease>,
}

/// Pulls and merges images onto one shelf of the cache, with the rights of that shelf.
#[derive(Debug)]
pub(super) struct Preparer {
    rights: PullRights,
    cache: Arc<Cache>,
    shelves: Arc<Shelves>,
    puller: Puller,
    rules: EvictionRules,
    merges: Arc<Semaphore>,
    /// Absent in processes that do not verify images.
    verifier: OnceLock<Verifier>,
}

impl Preparer {
    pub(super) fn new(
        rights: PullRights,
        shelves: Arc<Shelves>,
        registries: RegistrySettings,
        rules: EvictionRules,
        merges: Arc<Semaphore>,
    ) -> Self {
        let cache = Arc::clone(shelves.of(rights));
        let puller = Puller { cache: Arc::clone(&cache), registries: Registries::new(registries, rights) };
        Self { rights, cache, shelves, puller, rules, merges, verifier: OnceLock::new() }
    }

    pub(super) async fn prepare(
        &self,
        image: &ImageRef,
        resolve: Resolve,
        progress: &ProgressSender,
    ) -> Result<PreparedImage, PrepareFault> {
        let prepared = self.prepare_once(image, resolve, progress).await;
        // A pull that failed may have added layers, too.
        if !matches!(prepared, Ok((_, false))) {
            let (shelves, rules) = (Arc::clone(&self.shelves), self.rules);
            let Removed { .. } = self.cache.blocking(move |_| Ok(shelves.evict(&rules))).await?;
        }
        Ok(prepared?.0)
    }

    async fn prepare_once(
        &self,
        image: &ImageRef,
        resolve: Resolve,
        progress: &ProgressSender,
    ) -> Result<(PreparedImage, bool), PrepareFault> {
        let blobs_lock = self.cache.blocking(|cache| cache.blobs.lock_shared()).await?;
        let downloads = Arc::<Downloads>::default();
        let mut prepared = self.prepare_locked(image, resolve, progress, &downloads).await;
        let is_merge_fault = matches!(prepared, Err(PrepareFault::Image(ImageFault::Merge { .. })));
        // To look for corrupt blobs, all layers are read, so this is done only after a fault that they can cause.
        let is_image_fault = prepared.as_ref().is_err_and(PrepareFault::is_of_image);
        if is_merge_fault && self.lacks_layers(image).await || is_image_fault && self.remove_corrupt(image).await {
            prepared = self.prepare_locked(image, resolve, progress, &downloads).await;
        }
        if matches!(prepared, Err(PrepareFault::LowDisk { .. })) {
            // Otherwise an image that is too large for the disk would leave no space for anything else.
            self.cache
                .blocking(move |cache| {
                    downloads.discard(&cache.blobs);
                    Ok(())
                })
                .await?;
        }
        drop(blobs_lock);
        prepared
    }

    pub(super) fn verify_in_background(&self) {
        match Verifier::start() {
            Ok(verifier) => drop(self.verifier.set(verifier)),
            Err(error) => {
                tracing::warn!(error = &error as &dyn Error, "failed to start the verification of images");
            }
        }
    }

    pub(super) fn evict(&self) -> Removed {
        self.shelves.evict(&self.rules)
    }

    /// Prepares the image while the caller holds the lock of the blobs. Also returns whether a merged image was added
    /// to the cache.
    async fn prepare_locked(
        &self,
        image: &ImageRef,
        resolve: Resolve,
        progress: &ProgressSender,
        downloads: &Arc<Downloads>,
    ) -> Result<(PreparedImage, bool), PrepareFault> {
        let found = match image {
            ImageRef::Registry(registry) => self.puller.pull(image, registry, resolve, progress, downloads).await?,
            ImageRef::Layout(_) | ImageRef::Archive(_) if self.rights == PullRights::Public => {
                return Err(PrepareFault::NotInRegistry { image: image.short_name() });
            }
            ImageRef::Layout(_) | ImageRef::Archive(_) => {
                let image = image.clone();
                self.cache.blocking(move |_| Ok(FoundImage::on_this_machine(&image)?)).await?
            }
        };
        let manifest = found.manifest().clone();
        let (env, agent) = (found.env().to_vec(), found.agent().cloned());
        let working_directory = found.working_directory().map(str::to_owned);
        let (erofs, lease, is_new) = self.merge(found, progress).await?;
        if let Some(verifier) = self.verifier.get() {
            if is_new { verifier.skip(&erofs) } else { verifier.queue(&erofs) }
        }
        let image = image.clone();
        self.cache
            .blocking(move |cache| {
                // The puller records registry images. A local image is recorded here, after its layers have been
                // merged.
                let is_local = !matches!(image, ImageRef::Registry(_));
                let digest = manifest.digest();
                if is_local && cache.records.find(&image).is_none_or(|record| record.manifest.digest() != digest) {
                    cache.records.put(&image, &manifest)?;
                }
                // The first part is the configuration, which each preparation reads. The cache does not have the parts
                // of a local image.
                let name = image.to_string();
                let parts = cache.parts(&name, &manifest).unwrap_or_default();
                cache.blobs.touch(parts.first().map(Descriptor::digest).into_iter().chain([digest]));
                lease::touch(&cache.records.path_of(&name));
                Ok(())
            })
            .await?;
        Ok((PreparedImage { erofs, env, working_directory, agent, lease: Arc::new(lease) }, is_new))
    }

    /// Returns the path of the merged image, a lease on the file, and whether this call merged the image.
    async fn merge(
        &self,
        found: FoundImage,
        progress: &ProgressSender,
    ) -> Result<(PathBuf, Lease, bool), PrepareFault> {
        let path = self.cache.merged.path_of(found.manifest().digest());
        if let Some(lease) = self.lease(path.clone()).await? {
            return Ok((path, lease, false));
        }
        let lock = self.cache.locks.lock(&path).await;
        if let Some(lease) = self.lease(path.clone()).await? {
            return Ok((path, lease, false));
        }
        // The semaphore is never closed.
        let permit = Arc::clone(&self.merges).acquire_owned().await.ok();
        let needed_bytes = found.layer_bytes().saturating_mul(MERGE_BYTES_PER_LAYER_BYTE);
        self.cache.blocking(move |cache| cache.check_reserve(needed_bytes)).await?;
        let cancel = CancelOnDrop(Arc::new(self.cache.merge_control()));
        let (control, total) = (Arc::clone(&cancel.0), found.layer_bytes());
        let merging = spawn_blocking({
            let (cache, control) = (Arc::clone(&self.cache), Arc::clone(&control));
            move || {
                let merged = cache.merged.merge(&found, &control);
                cache.blobs.touch(found.layers().map(Descriptor::digest));
                // The lock and the permit are released here, which can be after the caller's future has been dropped.
                drop((lock, permit));
                merged
            }
        });
        let merged = report_while(merging, progress, Step::Merge, total, || control.read_bytes()).await;
        let merged =
            merged.map_err(|source| PrepareFault::Lost { what: format!("the merge to {}", path.display()), source })?;
        if let (Err(_), Some(source)) = (&merged, control.low_disk()) {
            return Err(PrepareFault::LowDisk { folder: self.cache.folder().display().to_string(), source });
        }
        merged?;
        match self.lease(path.clone()).await? {
            Some(lease) => Ok((path, lease, true)),
            // Another process has deliberately removed the image since the merge, so this call does not merge again.
            None => Err(file_fault("find", &path)(io::ErrorKind::NotFound.into())),
        }
    }

    async fn lease(&self, path: PathBuf) -> Result<Option<Lease>, PrepareFault> {
        self.cache.blocking(move |_| lease::lease(&path).map_err(file_fault("use", &path))).await
    }

    /// Returns whether the cache has the manifest of an image, but neither the merged image nor all layers. After a
    /// failure, the merged image has been evicted since the pull found it, so the layers were not pulled.
    async fn lacks_layers(&self, image: &ImageRef) -> bool {
        let image = image.clone();
        let lacking = self.cache.blocking(move |cache| {
            let Some(manifest) = cache.manifest(&image) else { return Ok(false) };
            let is_merged = cache.merged.path_of(manifest.digest()).is_file();
            let is_registry = matches!(image, ImageRef::Registry(_));
            let parts = cache.parts(&image.to_string(), &manifest)?;
            Ok(is_registry && !is_merged && !parts.iter().all(|part| cache.blobs.has(part)))
        });
        lacking.await.unwrap_or(false)
    }

    /// Removes the image's corrupt blobs after a failure. Returns whether any blob was removed, because only then a
    /// retry makes sense.
    async fn remove_corrupt(&self, image: &ImageRef) -> bool {
        let image = image.clone();
        let removed = self.cache.blocking(move |cache| {
            let Some(manifest) = cache.manifest(&image) else { return Ok(0) };
            if cache.blobs.remove_corrupt(std::iter::once(&manifest)) > 0 {
                return Ok(1);
            }
            Ok(cache.blobs.remove_corrupt(cache.parts(&image.to_string(), &manifest)?.iter()))
        });
        removed.await.unwrap_or(0) > 0
    }
}

/// Cancels the merge when the caller's future is dropped, because a thread cannot be aborted.
struct CancelOnDrop(Arc<MergeControl>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}
