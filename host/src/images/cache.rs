// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The image store: from a reference to a file that a machine can have as its disk, kept for the next time.
//!
//! ```text
//!  IMAGE_CACHE_DIR/
//!    blobs/sha256/<hex>           what was pulled: manifests, configurations, layers
//!    records/<hex>.json           what a reference stands for, since when
//!    merged-v2/sha256-<hex>.erofs one file a manifest; under a shared lock while a machine uses it
//!    .lock                        shared by who pulls or merges, exclusive for who removes blobs
//! ```
//!
//! A file is written under a name of its own and gets its place when it is whole, so that several servers can share the
//! folder and none of them can be killed at a wrong moment. A tag means what it meant when it was pulled, until it is
//! pulled again: a create of an image that is here needs no network.

mod blobs;
mod evict;
mod fault;
mod inventory;
mod jobs;
mod prepare;
mod pull;
mod records;
mod usage;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use tokio::{sync::OwnedMutexGuard, task::spawn_blocking};

use self::{blobs::Blobs, jobs::Jobs, prepare::Preparer, records::Records};
pub use self::{
    evict::{Dropped, Rules},
    fault::PrepareFault,
    inventory::{Listed, RemoveFault, UnknownImage, everything},
    usage::{Lease, User},
};
use crate::{
    domain::{
        image::ImageRef,
        ports::{PortFuture, Stage},
    },
    images::{
        merge::{ImageAgent, Merged},
        registry::{Registries, RegistrySettings},
    },
    mutex::lock,
};

/// From one look for what is too old or too much to the next.
const KEEP_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// What an operator says about images.
#[derive(Clone, Debug, Default)]
pub struct ImageStoreSettings {
    /// The folder to keep everything in.
    pub cache_dir: PathBuf,
    /// What is known of registries.
    pub registries: RegistrySettings,
    /// When images go.
    pub rules: Rules,
}

/// An image that machines can start from.
#[derive(Clone, Debug)]
pub struct PreparedImage {
    /// The root file system, shared by all machines of the image; never written again.
    pub erofs: PathBuf,
    /// The image's environment, names and values.
    pub env: Vec<(String, String)>,
    /// Where the image wants commands to start: an absolute path, which need not exist.
    pub working_directory: Option<String>,
    /// The agent that the image brings along, if it says so.
    pub agent: Option<ImageAgent>,
    /// Keeps the file where it is, in this process and against all others, for as long as it is held.
    pub lease: Arc<Lease>,
}

/// Whether a registry is asked what a tag means.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Resolve {
    /// Only if it is not known yet.
    Once,
    /// In any case.
    Anew,
}

/// Prepares images, each once, and keeps them.
#[derive(Debug)]
pub struct ImageStore {
    preparer: Arc<Preparer>,
    jobs: Jobs,
}

impl ImageStore {
    /// Opens the store in a folder, which is made if it is not there, without limits of age or size.
    ///
    /// # Errors
    /// If the folder cannot be made or is not writable.
    pub fn open(cache_dir: impl AsRef<Path>) -> Result<Self, PrepareFault> {
        let cache_dir = cache_dir.as_ref().to_owned();
        Self::with_settings(ImageStoreSettings { cache_dir, ..ImageStoreSettings::default() })
    }

    /// Opens the store; what dead processes left unfinished in it is removed. Blocks for other processes' locks.
    ///
    /// # Errors
    /// If the folder cannot be made or is not writable, or there can be no TLS.
    pub fn with_settings(settings: ImageStoreSettings) -> Result<Self, PrepareFault> {
        let ImageStoreSettings { cache_dir, registries, rules } = settings;
        let registries = Registries::new(registries);
        let preparer = Preparer::new(
            Merged::open(&cache_dir)?,
            Blobs::open(&cache_dir)?,
            Records::open(&cache_dir)?,
            registries,
            rules,
            cache_dir,
        );
        Ok(Self { preparer: Arc::new(preparer), jobs: Jobs::default() })
    }

    /// Gives the image as a file; pulls it and merges its layers if that has not been done.
    ///
    /// # Errors
    /// [`PrepareFault`] says what is wrong with the reference, the registry, the image or the cache.
    pub async fn prepare(&self, image: &ImageRef) -> Result<PreparedImage, Arc<PrepareFault>> {
        self.prepare_with(image, Resolve::Once, &|_| {}).await
    }

    /// The same; `tell` hears how far it is.
    ///
    /// Callers of the same image share one pull and one merge. They go on while one caller waits for them, and end when
    /// the last one's future is dropped.
    ///
    /// # Errors
    /// [`PrepareFault`] says what is wrong with the reference, the registry, the image or the cache.
    pub async fn prepare_with(
        &self,
        image: &ImageRef,
        resolve: Resolve,
        tell: &(dyn Fn(Stage) + Send + Sync),
    ) -> Result<PreparedImage, Arc<PrepareFault>> {
        let job = self.jobs.join((image.clone(), resolve), |news| {
            let (preparer, image) = (Arc::clone(&self.preparer), image.clone());
            let work = async move { preparer.prepare(&image, resolve, &news).await };
            Box::pin(work) as PortFuture<'static, _>
        });
        job.outcome(image, tell).await
    }

    /// Removes what is older or more than the rules allow and nobody uses. Blocks.
    #[must_use]
    pub fn tidy(&self) -> Dropped {
        self.preparer.tidy()
    }

    /// Does that now and from time to time, for ever.
    pub async fn keep_tidy(&self) {
        loop {
            let preparer = Arc::clone(&self.preparer);
            // It has said what it did; a panic in there is logged by the runtime, and the next time may be better.
            let _ = spawn_blocking(move || preparer.tidy()).await;
            tokio::time::sleep(KEEP_INTERVAL).await;
        }
    }
}

/// Whose turn it is to make a file.
#[derive(Debug, Default)]
struct Turns(Mutex<HashMap<PathBuf, Weak<tokio::sync::Mutex<()>>>>);

impl Turns {
    /// Waits until nobody else in this process makes the file of this path.
    async fn wait(&self, path: &Path) -> OwnedMutexGuard<()> {
        let lock = {
            let mut busy = lock(&self.0);
            busy.retain(|_, lock| lock.strong_count() > 0);
            match busy.get(path).and_then(Weak::upgrade) {
                Some(lock) => lock,
                None => {
                    let lock = Arc::default();
                    busy.insert(path.to_owned(), Arc::downgrade(&lock));
                    lock
                }
            }
        };
        lock.lock_owned().await
    }
}
