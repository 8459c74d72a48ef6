// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The image store: from a reference to an EROFS file that a machine can have as its disk.
//!
//! It reads OCI layouts and merges an image's layers into one file, once for each manifest; nothing is ever unpacked
//! onto the host's file system. It does not pull from registries.

mod blob;
mod config;
mod entry_name;
mod erofs;
mod file_range;
mod layout;
mod limits;
mod merge;
mod pax;
mod source;
mod tar_stream;
mod tree;
mod xattrs;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use oci_spec::image::Digest;
use tokio::{
    sync::{OwnedMutexGuard, Semaphore},
    task::{JoinError, spawn_blocking},
};

pub use self::config::ImageAgent;
use self::{
    config::{Checked, ConfigFault},
    layout::{Image, LayoutFault, Source},
    merge::MergeFault,
};
use crate::{
    domain::image::ImageRef,
    infra::draft::{DraftFault, DraftFolder},
};

/// Changes with the rules of merging, so that images merged by other rules are not taken for current ones.
const MERGED_FOLDER: &str = "merged-v1";

/// An image that machines can start from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PreparedImage {
    /// The root file system, shared by all machines of the image; never written again.
    pub erofs: PathBuf,
    /// The image's environment, names and values.
    pub env: Vec<(String, String)>,
    /// The agent that the image brings along, if it says so.
    pub agent: Option<ImageAgent>,
}

/// An image could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum ImageFault {
    /// The cache folder.
    #[error("failed to use the image cache")]
    Cache {
        /// Why.
        #[from]
        source: DraftFault,
    },
    /// Registries are not read.
    #[error(
        "the image {image} is in a registry, and this version does not pull; build or copy it to an OCI layout \
         (skopeo copy docker://{image} oci:DIR:latest) and name that as oci:DIR or oci-archive:FILE"
    )]
    Registry {
        /// The reference.
        image: String,
    },
    /// The layout is broken or lacks the image.
    #[error("failed to read the image {image}")]
    Layout {
        /// The reference.
        image: String,
        /// What is wrong.
        source: Box<LayoutFault>,
    },
    /// The configuration cannot be honoured.
    #[error("failed to use the configuration of the image {image}")]
    Config {
        /// The reference.
        image: String,
        /// What is wrong.
        source: ConfigFault,
    },
    /// The layers could not be merged.
    #[error("failed to merge the layers of the image {image}")]
    Merge {
        /// The reference.
        image: String,
        /// What is wrong.
        source: Box<MergeFault>,
    },
    /// The work ended without a result: it panicked, or the server is shutting down.
    #[error("the preparation of the image {image} ended without a result")]
    Lost {
        /// The reference.
        image: String,
        /// How.
        source: JoinError,
    },
}

/// Prepares images, each once.
#[derive(Debug)]
pub struct ImageStore {
    merged: Arc<DraftFolder>,
    /// Who prepares which image now, by the path that it will have.
    busy: Mutex<HashMap<PathBuf, Weak<tokio::sync::Mutex<()>>>>,
    merges: Arc<Semaphore>,
}

impl ImageStore {
    /// Opens the store in a folder, which is made if it is not there.
    ///
    /// # Errors
    /// If the folder cannot be made or is not writable.
    pub fn open(cache_dir: impl AsRef<Path>) -> Result<Self, ImageFault> {
        let merged = Arc::new(DraftFolder::open(cache_dir.as_ref().join(MERGED_FOLDER))?);
        Ok(Self { merged, busy: Mutex::default(), merges: Arc::new(Semaphore::new(limits::MERGES_AT_ONCE)) })
    }

    /// Gives the image as a file, and merges its layers if that has not been done.
    ///
    /// Callers of the same image share one merge. Dropping the future ends the merge that it started, unless that is
    /// about to be finished.
    ///
    /// # Errors
    /// [`ImageFault`] says what is wrong with the reference, the layout, the image or the cache.
    pub async fn prepare(&self, image: &ImageRef) -> Result<PreparedImage, ImageFault> {
        let name = image.to_string();
        let lost = |source| ImageFault::Lost { image: name.clone(), source };
        let found = spawn_blocking({
            let image = image.clone();
            move || find(&image)
        });
        let (source, found, checked) = found.await.map_err(lost)??;
        let path = self.path(found.manifest.digest());
        if exists(&path).await {
            return Ok(checked.with_erofs(path));
        }
        let turn = self.turn(&path).await;
        if exists(&path).await {
            return Ok(checked.with_erofs(path));
        }
        // The semaphore is never closed.
        let _merging = self.merges.acquire().await.ok();
        let stop = StopOnDrop::default();
        let merged = spawn_blocking({
            let (merged, path, stop) = (Arc::clone(&self.merged), path.clone(), Arc::clone(&stop.0));
            move || merge_into_cache(&merged, &source, &found, &path, &stop, turn)
        });
        match merged.await.map_err(lost)? {
            Ok(()) => Ok(checked.with_erofs(path)),
            Err(Failed::Cache(source)) => Err(ImageFault::Cache { source }),
            Err(Failed::Merge(source)) => Err(ImageFault::Merge { image: name, source: Box::new(source) }),
        }
    }

    fn path(&self, manifest: &Digest) -> PathBuf {
        // A digest has no slash: its parser sees to that.
        self.merged.path().join(format!("{}-{}.erofs", manifest.algorithm(), manifest.digest()))
    }

    /// Waits until nobody else prepares the image of this path.
    async fn turn(&self, path: &Path) -> OwnedMutexGuard<()> {
        let lock = {
            let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
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

/// Tells the merge that nobody waits for it any more.
#[derive(Default)]
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

enum Failed {
    Cache(DraftFault),
    Merge(MergeFault),
}

/// Everything about an image but its layers' content.
fn find(image: &ImageRef) -> Result<(Source, Image, Checked), ImageFault> {
    let name = || image.to_string();
    let layout_fault = |source| ImageFault::Layout { image: name(), source: Box::new(source) };
    let (source, tag) = match image {
        ImageRef::Registry(_) => return Err(ImageFault::Registry { image: name() }),
        ImageRef::Layout(local) => (Source::open_folder(local.path()).map_err(layout_fault)?, local.tag()),
        ImageRef::Archive(local) => (Source::open_archive(local.path()).map_err(layout_fault)?, local.tag()),
    };
    let found = layout::find(&source, tag).map_err(layout_fault)?;
    let checked = config::check(&found.config).map_err(|source| ImageFault::Config { image: name(), source })?;
    Ok((source, found, checked))
}

/// `turn` is held until the work is really over, even if its caller has gone.
fn merge_into_cache(
    merged: &DraftFolder,
    source: &Source,
    found: &Image,
    path: &Path,
    stop: &AtomicBool,
    turn: OwnedMutexGuard<()>,
) -> Result<(), Failed> {
    let started = Instant::now();
    let draft = merged.draft().map_err(Failed::Cache)?;
    let uuid = uuid_of(found.manifest.digest().digest());
    let measure =
        merge::merge(source, &found.layers, merged.path(), draft.file(), uuid, stop).map_err(Failed::Merge)?;
    draft.publish(path).map_err(Failed::Cache)?;
    tracing::info!(
        manifest = %found.manifest.digest(),
        layers = found.layers.len(),
        entries = measure.entries,
        content_bytes = measure.content_bytes,
        duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        "merged an image"
    );
    drop(turn);
    Ok(())
}

/// The file system's id, from the manifest's digest: the same image is the same file, bit for bit.
fn uuid_of(hex: &str) -> [u8; 16] {
    let mut uuid = [0; 16];
    for (at, byte) in uuid.iter_mut().enumerate() {
        let digits = hex.get(2 * at..2 * at + 2).unwrap_or("0");
        *byte = u8::from_str_radix(digits, 16).unwrap_or(0);
    }
    uuid
}

async fn exists(path: &Path) -> bool {
    tokio::fs::try_exists(path).await.unwrap_or(false)
}
