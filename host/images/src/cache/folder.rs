// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The cache folder and its files: merged images, blobs and records.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use oci_spec::image::Descriptor;
use tokio::{task::spawn_blocking, time::sleep};
use waggle_shared::disk_reserve::DiskReserve;

use super::{blobs::Blobs, fault::PrepareFault, keyed_locks::KeyedLocks, records::Records};
use crate::{
    merge::{self, FoundImage, ImageFault, MergeControl, Merged},
    reference::ImageRef,
};

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum FileKind {
    Merged,
    Blob,
    Record,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct CachedFile {
    pub(super) path: PathBuf,
    pub(super) kind: FileKind,
    /// Disk usage. A sparse file uses less than its length.
    pub(super) bytes: u64,
    pub(super) used: SystemTime,
}

/// Interval of the checks of free space during a pull.
const RESERVE_CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// The open cache folder.
#[derive(Debug)]
pub(super) struct Cache {
    folder: PathBuf,
    reserve: DiskReserve,
    pub(super) merged: Merged,
    pub(super) blobs: Blobs,
    pub(super) records: Records,
    /// Locks of the blobs and merged images that tasks of this process write.
    pub(super) locks: KeyedLocks,
}

impl Cache {
    pub(super) fn open(folder: PathBuf, reserve: DiskReserve) -> Result<Self, PrepareFault> {
        let (merged, blobs) = (Merged::open(&folder)?, Blobs::open(&folder)?);
        let records = Records::open(&folder)?;
        Ok(Self { folder, reserve, merged, blobs, records, locks: KeyedLocks::default() })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Runs file operations on a thread where they may block.
    pub(super) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, PrepareFault> + Send + 'static,
    ) -> Result<T, PrepareFault> {
        let cache = Arc::clone(self);
        let done = spawn_blocking(move || work(&cache)).await;
        done.map_err(|source| PrepareFault::Lost { what: "access to the image cache".to_owned(), source })?
    }

    /// Checks whether the disk's reserve remains free after `needed_bytes` have been written. Blocks.
    pub(super) fn check_reserve(&self, needed_bytes: u64) -> Result<(), PrepareFault> {
        let folder = || self.folder.display().to_string();
        let checked = self.reserve.check(&self.folder, needed_bytes);
        checked.map_err(|source| PrepareFault::LowDisk { folder: folder(), source })
    }

    /// Resolves with a fault when less than the reserve is free.
    pub(super) async fn reserve_in_use(self: &Arc<Self>) -> PrepareFault {
        loop {
            sleep(RESERVE_CHECK_INTERVAL).await;
            if let Err(fault) = self.blocking(|cache| cache.check_reserve(0)).await {
                return fault;
            }
        }
    }

    /// Creates the control of a merge, which fails when less than the reserve is free.
    pub(super) fn merge_control(&self) -> MergeControl {
        MergeControl::with_reserve(self.reserve, self.folder.clone())
    }

    /// Returns the manifest that the reference was resolved to, if the manifest's blob is in the cache.
    pub(super) fn manifest(&self, image: &ImageRef) -> Option<Descriptor> {
        let manifest = self.records.find(image)?.manifest;
        self.blobs.has(&manifest).then_some(manifest)
    }

    /// Returns the descriptors of a manifest's configuration and then of its layers. The manifest's blob must be in the
    /// cache.
    pub(super) fn parts(&self, name: &str, manifest: &Descriptor) -> Result<Vec<Descriptor>, ImageFault> {
        merge::parts(name, &self.folder, manifest)
    }

    /// Reads the manifest and the configuration of an image from the cache. Errors quote `name`.
    pub(super) fn image(&self, name: String, manifest: &Descriptor) -> Result<FoundImage, ImageFault> {
        FoundImage::in_blobs(name, &self.folder, manifest)
    }

    /// Returns the disk usage of all finished files.
    pub(super) fn bytes(&self) -> u64 {
        self.files().iter().fold(0, |sum, file| sum.saturating_add(file.bytes))
    }

    /// Returns all finished files.
    pub(super) fn files(&self) -> Vec<CachedFile> {
        let mut all = files_in(self.merged.folder(), FileKind::Merged);
        for folder in self.merged.other_folders() {
            all.extend(files_in(&folder, FileKind::Merged));
        }
        all.extend(files_in(self.records.folder(), FileKind::Record));
        for algorithm in fs::read_dir(self.blobs.folder()).into_iter().flatten().filter_map(Result::ok) {
            all.extend(files_in(&algorithm.path(), FileKind::Blob));
        }
        all
    }
}

fn files_in(folder: &Path, kind: FileKind) -> Vec<CachedFile> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let files = entries.filter_map(|entry| {
        let metadata = entry.metadata().ok()?;
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        (metadata.is_file() && !hidden).then(|| CachedFile {
            path: entry.path(),
            kind,
            bytes: metadata.blocks().saturating_mul(512),
            used: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
        })
    });
    files.collect()
}
