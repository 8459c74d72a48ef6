// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Pulls images from registries: first the manifest that the reference names, then the blobs that the cache does not
//! have.

use std::{
    convert::Infallible,
    fs, iter,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use oci_spec::image::{Descriptor, Digest};
use tokio::time::{Instant, sleep};
use waggle_shared::{draft::Draft, mutex::lock};

use super::{
    blobs::Blobs,
    fault::{PrepareFault, file_fault},
    folder::Cache,
};
use crate::{
    merge::{EXPANDED_BYTES_MAX, FoundImage, PlatformSearch, SearchStep, layout_fault},
    progress::{ProgressSender, Step, report_while},
    reference::{ImageRef, RegistryRef},
    registry::{Registries, RegistryFault, Session},
};

/// Maximum number of concurrent downloads of one image's blobs.
const DOWNLOADS_AT_ONCE: usize = 4;

/// Maximum bytes of one stored blob. Common registries do not accept larger blobs.
const BLOB_BYTES_MAX: u64 = 10 * 1024 * 1024 * 1024;

/// Least disk space that a merge needs for each byte of the stored layers: once for the spooled files, and once for the
/// merged image. Neither is compressed, so most images need more.
pub(super) const MERGE_BYTES_PER_LAYER_BYTE: u64 = 2;

/// Interval of progress messages in the log.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Controls when a reference is resolved in the registry.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Resolve {
    /// Only if the cache cannot resolve the reference.
    IfUnknown,
    /// Always, because a tag may have moved.
    Always,
}

/// The blobs that one preparation has added to the cache.
#[derive(Debug)]
pub(super) struct Downloads {
    /// `None` after they were discarded.
    published: Mutex<Option<Vec<Digest>>>,
}

impl Default for Downloads {
    fn default() -> Self {
        Self { published: Mutex::new(Some(Vec::new())) }
    }
}

impl Downloads {
    /// Moves a complete draft into the cache, unless the downloads were discarded while its thread waited.
    fn publish(&self, blobs: &Blobs, draft: Draft, digest: &Digest) -> Result<(), PrepareFault> {
        let mut published = lock(&self.published);
        if let Some(published) = published.as_mut() {
            blobs.publish(draft, digest)?;
            published.push(digest.clone());
        }
        Ok(())
    }

    /// Removes the blobs. Another preparation that has found one of them in the cache downloads it again.
    pub(super) fn discard(&self, blobs: &Blobs) {
        for digest in lock(&self.published).take().into_iter().flatten() {
            let path = blobs.path_of(&digest);
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "failed to remove a blob of an image that does not fit");
            }
        }
    }
}

/// Downloads images into the cache.
#[derive(Debug)]
pub(super) struct Puller {
    pub(super) cache: Arc<Cache>,
    pub(super) registries: Registries,
}

impl Puller {
    /// Downloads the needed blobs of an image that the cache does not have, and reads the image's configuration.
    pub(super) async fn pull(
        &self,
        image: &ImageRef,
        registry: &RegistryRef,
        resolve: Resolve,
        progress: &ProgressSender,
        downloads: &Arc<Downloads>,
    ) -> Result<FoundImage, PrepareFault> {
        let name = image.to_string();
        let known = match resolve {
            Resolve::IfUnknown => {
                let image = image.clone();
                self.cache.blocking(move |cache| Ok(cache.manifest(&image))).await?
            }
            Resolve::Always => None,
        };
        let (manifest, session) = match known {
            Some(manifest) => (manifest, None),
            None => {
                let session = self.registries.connect(registry).await.map_err(pull_fault(&name))?;
                (self.resolve(&name, &session).await?, Some(session))
            }
        };
        let missing = {
            let (name, manifest) = (name.clone(), manifest.clone());
            self.cache.blocking(move |cache| missing(cache, &name, &manifest)).await?
        };
        if !missing.is_empty() {
            let session = match session {
                Some(session) => session,
                None => self.registries.connect(registry).await.map_err(pull_fault(&name))?,
            };
            self.download(&name, &session, missing, progress, downloads).await?;
        }
        let image = image.clone();
        self.cache
            .blocking(move |cache| {
                // The record is written last, after all needed blobs of the image are complete.
                if resolve == Resolve::Always
                    || cache.records.find(&image).is_none_or(|record| record.manifest != manifest)
                {
                    cache.records.put(&image, &manifest)?;
                }
                Ok(cache.image(name, &manifest)?)
            })
            .await
    }

    /// Fetches the image's manifest for this machine's platform, and stores the manifest in the cache.
    async fn resolve(&self, name: &str, session: &Session<'_>) -> Result<Descriptor, PrepareFault> {
        let faulty = |source| layout_fault(name, source);
        let mut document = session.top().await.map_err(pull_fault(name))?;
        let mut search = PlatformSearch::new(iter::once(document.descriptor.clone()));
        loop {
            let step = search.next_step().map_err(faulty)?;
            let (SearchStep::Read(wanted) | SearchStep::Found(wanted)) = &step;
            if wanted.digest() != document.descriptor.digest() {
                document = session.by_digest(wanted.digest()).await.map_err(pull_fault(name))?;
            }
            match step {
                SearchStep::Read(_) => search.add(&document.content).map_err(faulty)?,
                SearchStep::Found(manifest) => {
                    let digest = manifest.digest().clone();
                    self.cache.blocking(move |cache| cache.blobs.put(&digest, &document.content)).await?;
                    return Ok(manifest);
                }
            }
        }
    }

    /// Downloads blobs, several at once.
    async fn download(
        &self,
        name: &str,
        session: &Session<'_>,
        missing: Vec<Descriptor>,
        progress: &ProgressSender,
        into: &Arc<Downloads>,
    ) -> Result<(), PrepareFault> {
        let too_large =
            |what, bytes, bytes_max| PrepareFault::TooLarge { image: name.to_owned(), what, bytes, bytes_max };
        if let Some(blob) = missing.iter().find(|blob| blob.size() > BLOB_BYTES_MAX) {
            return Err(too_large("a layer", blob.size(), BLOB_BYTES_MAX));
        }
        let total = missing.iter().fold(0, |sum: u64, blob| sum.saturating_add(blob.size()));
        if total > EXPANDED_BYTES_MAX {
            return Err(too_large("layers", total, EXPANDED_BYTES_MAX));
        }
        let needed_bytes = total.saturating_mul(1 + MERGE_BYTES_PER_LAYER_BYTE);
        self.cache.blocking(move |cache| cache.check_reserve(needed_bytes)).await?;
        let started = Instant::now();
        tracing::info!(image = name, blobs = missing.len(), bytes = total, "pulling an image");
        let received = AtomicU64::new(0);
        let downloads = stream::iter(missing)
            .map(|blob| self.download_one(name, session, blob, &received, into))
            .buffer_unordered(DOWNLOADS_AT_ONCE)
            .try_collect::<()>();
        let done = || received.load(Ordering::Relaxed);
        tokio::select! {
            downloaded = report_while(downloads, progress, Step::Pull, total, done) => downloaded?,
            // Dropping the downloads removes their drafts.
            low = self.cache.reserve_in_use() => return Err(low),
            never = log_progress(name, total, done) => match never {},
        }
        let duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(image = name, bytes = total, duration_ms, "pulled an image");
        Ok(())
    }

    async fn download_one(
        &self,
        name: &str,
        session: &Session<'_>,
        blob: Descriptor,
        received: &AtomicU64,
        into: &Arc<Downloads>,
    ) -> Result<(), PrepareFault> {
        // Images share layers, so two concurrent pulls can need the same blob.
        let _lock = self.cache.locks.lock(&self.cache.blobs.path_of(blob.digest())).await;
        if self.cache.blobs.has(&blob) {
            received.fetch_add(blob.size(), Ordering::Relaxed);
            return Ok(());
        }
        let draft = self.cache.blocking(|cache| cache.blobs.draft()).await?;
        let file = draft.file().try_clone().map_err(file_fault("open", draft.path()))?;
        session.download(&blob, file, received).await.map_err(pull_fault(name))?;
        let into = Arc::clone(into);
        self.cache.blocking(move |cache| into.publish(&cache.blobs, draft, blob.digest())).await
    }
}

/// Returns the needed blobs that the cache does not have. Layers are needed only if the image is not merged yet.
fn missing(cache: &Cache, name: &str, manifest: &Descriptor) -> Result<Vec<Descriptor>, PrepareFault> {
    let parts = cache.parts(name, manifest)?;
    let is_merged = cache.merged.path_of(manifest.digest()).is_file();
    let needed = if is_merged { 1 } else { parts.len() };
    let mut missing: Vec<Descriptor> = Vec::new();
    for part in parts.into_iter().take(needed) {
        // An image may contain the same layer twice.
        if !cache.blobs.has(&part) && !missing.iter().any(|other| other.digest() == part.digest()) {
            missing.push(part);
        }
    }
    Ok(missing)
}

async fn log_progress(image: &str, total: u64, done: impl Fn() -> u64) -> Infallible {
    loop {
        sleep(LOG_INTERVAL).await;
        tracing::info!(image, bytes = done(), of_bytes = total, "still pulling an image");
    }
}

fn pull_fault(name: &str) -> impl Fn(RegistryFault) -> PrepareFault {
    let image = name.to_owned();
    move |source| PrepareFault::Pull { image: image.clone(), source: Box::new(source) }
}
