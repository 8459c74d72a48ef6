// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! From a registry to blobs: what the tag means, then whatever of the image is not here yet.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use oci_spec::image::Descriptor;
use tokio::task::spawn_blocking;

use super::{PrepareFault, jobs::Teller, prepare::Preparer};
use crate::{
    domain::ports::{Amount, Stage},
    images::{
        merge::{EXPANDED_BYTES_MAX, PlatformSearch, Step, layout_fault},
        registry::{RegistryFault, Session},
    },
    mutex::lock,
};

/// Blobs of one image that are downloaded at once.
const DOWNLOADS_AT_ONCE: usize = 4;

/// Bytes of one blob as it is stored; registries refuse larger ones.
const BLOB_BYTES_MAX: u64 = 10 * 1024 * 1024 * 1024;

/// From one word of progress to the next; a pull has at most a hundred of them, one a percent.
const TELL_INTERVAL: Duration = Duration::from_millis(250);

/// From one line in the log to the next.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

impl Preparer {
    /// Asks the registry which manifest the image has for this machine's platform, and keeps that.
    pub(super) async fn resolve(
        self: &Arc<Self>,
        name: &str,
        session: &Session<'_>,
    ) -> Result<Descriptor, PrepareFault> {
        let faulty = |source| layout_fault(name, source);
        let mut document = session.top().await.map_err(pull_fault(name))?;
        let mut search = PlatformSearch::new(std::iter::once(document.descriptor.clone()));
        loop {
            match search.next_step().map_err(faulty)? {
                Step::Found(manifest) => {
                    if manifest.digest() != document.descriptor.digest() {
                        document = session.by_digest(manifest.digest()).await.map_err(pull_fault(name))?;
                    }
                    self.keep(document.content, manifest.clone()).await?;
                    return Ok(manifest);
                }
                Step::Read(index) => {
                    if index.digest() != document.descriptor.digest() {
                        document = session.by_digest(index.digest()).await.map_err(pull_fault(name))?;
                    }
                    search.add(&document.content).map_err(faulty)?;
                }
            }
        }
    }

    async fn keep(self: &Arc<Self>, content: Vec<u8>, descriptor: Descriptor) -> Result<(), PrepareFault> {
        self.blocking(move |preparer| preparer.blobs.put(descriptor.digest(), &content)).await
    }

    /// Downloads blobs, several at once.
    pub(super) async fn download(
        self: &Arc<Self>,
        name: &str,
        session: &Session<'_>,
        missing: &[Descriptor],
        teller: &Teller,
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
        let started = Instant::now();
        tracing::info!(image = name, blobs = missing.len(), bytes = total, "pulling an image");
        let meter = Meter::new(name, total, teller);
        stream::iter(missing.to_vec())
            .map(|blob| self.download_one(name, session, blob, &meter))
            .buffer_unordered(DOWNLOADS_AT_ONCE)
            .try_collect::<()>()
            .await?;
        let duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(image = name, bytes = total, duration_ms, "pulled an image");
        Ok(())
    }

    async fn download_one(
        self: &Arc<Self>,
        name: &str,
        session: &Session<'_>,
        blob: Descriptor,
        meter: &Meter<'_>,
    ) -> Result<(), PrepareFault> {
        // Images share layers, and two of them can be pulled at once.
        let path = self.blobs.path_of(blob.digest());
        let _turn = self.turns.wait(&path).await;
        let counted = AtomicU64::new(0);
        let tell = |bytes| meter.update(&counted, bytes);
        if self.blobs.has(&blob) {
            tell(blob.size());
            return Ok(());
        }
        let draft = self.blocking(|preparer| preparer.blobs.draft()).await?;
        let file = draft.file().try_clone().map_err(super::blobs::file_fault("open", draft.path()))?;
        session.download(&blob, file, &tell).await.map_err(pull_fault(name))?;
        let digest = blob.digest().clone();
        self.blocking(move |preparer| preparer.blobs.publish(draft, &digest)).await
    }

    /// Does what blocks on a thread that may.
    pub(super) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, PrepareFault> + Send + 'static,
    ) -> Result<T, PrepareFault> {
        let preparer = Arc::clone(self);
        let done = spawn_blocking(move || work(&preparer)).await;
        done.map_err(|source| PrepareFault::Lost { what: "files of the image cache".to_owned(), source: Some(source) })?
    }
}

pub(super) fn pull_fault(name: &str) -> impl Fn(RegistryFault) -> PrepareFault {
    let image = name.to_owned();
    move |source| PrepareFault::Pull { image: image.clone(), source: Box::new(source) }
}

/// Counts what all downloads of an image have brought, and tells it now and then.
struct Meter<'a> {
    name: &'a str,
    total: u64,
    done: AtomicU64,
    teller: &'a Teller,
    last: Mutex<Told>,
}

struct Told {
    at: Instant,
    percent: u64,
    logged: Instant,
}

impl<'a> Meter<'a> {
    fn new(name: &'a str, total: u64, teller: &'a Teller) -> Self {
        teller.tell(Stage::Pull(Amount { done: 0, total }));
        let now = Instant::now();
        let last = Mutex::new(Told { at: now, percent: 0, logged: now });
        Self { name, total, done: AtomicU64::new(0), teller, last }
    }

    /// One download has so many bytes now; it had what `counted` says. It has fewer if it began again.
    fn update(&self, counted: &AtomicU64, bytes: u64) {
        let before = counted.swap(bytes, Ordering::Relaxed);
        let done = if bytes >= before {
            self.done.fetch_add(bytes - before, Ordering::Relaxed).saturating_add(bytes - before)
        } else {
            self.done.fetch_sub(before - bytes, Ordering::Relaxed).saturating_sub(before - bytes)
        };
        let percent = done.saturating_mul(100).checked_div(self.total).unwrap_or(100);
        let now = Instant::now();
        let mut last = lock(&self.last);
        if percent > last.percent && now.duration_since(last.at) >= TELL_INTERVAL {
            (last.percent, last.at) = (percent, now);
            self.teller.tell(Stage::Pull(Amount { done, total: self.total }));
        }
        if now.duration_since(last.logged) >= LOG_INTERVAL {
            last.logged = now;
            tracing::info!(image = self.name, bytes = done, of_bytes = self.total, "an image is being pulled");
        }
    }
}
