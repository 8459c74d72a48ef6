// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Lists, inspects, removes and prunes images in the cache, for operators.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use oci_spec::image::Descriptor;
use serde::Serialize;
use waggle_shared::private_folder;

use super::{
    evict::{self, EvictionRules, Removed},
    folder::{Cache, CachedFile, FileKind},
    lease::{self, LeaseHolder},
    verifier,
};
use crate::{
    merge::{Integrity, MergeControl},
    reference::ImageRef,
};

/// Number of attempts to lock the blobs. If all attempts fail, the blobs stay until a later removal.
const LOCK_TRIES: u32 = 10;
const LOCK_INTERVAL: Duration = Duration::from_millis(100);

/// Minimum length of a digest prefix that identifies an image.
const DIGEST_CHARS_MIN: usize = 6;

/// An image in the cache.
#[derive(Clone, Debug, Serialize)]
pub struct CachedImage {
    /// References that were resolved to the image's manifest; empty if only the merged file is left.
    pub references: Vec<String>,
    /// Digest of the image's manifest.
    pub digest: String,
    /// Disk usage of the merged file; 0 if the image is not merged.
    pub merged_bytes: u64,
    /// Disk usage of the image's layers and documents, including blobs that other images share.
    pub pulled_bytes: u64,
    /// Time when a reference was last resolved to the image, in seconds since the epoch.
    pub resolved_unix_s: Option<u64>,
    /// Time of the last use, in seconds since the epoch.
    pub used_unix_s: u64,
    /// Processes that use the image now.
    pub users: Vec<LeaseHolder>,
    /// Whether only clients have named the image.
    pub of_clients: bool,
}

impl CachedImage {
    fn new(digest: String) -> Self {
        Self {
            references: Vec::new(),
            digest,
            merged_bytes: 0,
            pulled_bytes: 0,
            resolved_unix_s: None,
            used_unix_s: 0,
            users: Vec::new(),
            of_clients: false,
        }
    }
}

/// The cache does not have the image, or several images match a digest prefix.
#[derive(Debug, thiserror::Error)]
#[error("image {name} not found in the cache, or the digest prefix is ambiguous; `waggle image ls` lists all images")]
pub struct UnknownImage {
    name: String,
}

/// An image could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveFault {
    #[error(transparent)]
    Unknown(#[from] UnknownImage),
    #[error("the image {name} is in use by {}", pids(users))]
    InUse { name: String, users: Vec<LeaseHolder> },
    #[error("failed to remove the file {}", path.display())]
    Remove { path: PathBuf, source: io::Error },
}

fn pids(users: &[LeaseHolder]) -> String {
    if users.is_empty() {
        return "another process".to_owned();
    }
    users.iter().map(|user| format!("process {}", user.pid)).collect::<Vec<_>>().join(", ")
}

/// The state of an image that was verified.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verified {
    /// The merged image has the content that was written.
    Whole,
    /// The merged image had other content, or the disk could not read it. It was removed from the cache.
    Damaged,
    /// Only the image's layers are in the cache. They are verified whenever they are merged.
    NotMerged,
}

/// An image could not be verified.
#[derive(Debug, thiserror::Error)]
pub enum VerifyFault {
    #[error(transparent)]
    Unknown(#[from] UnknownImage),
    #[error("failed to verify the file {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("failed to remove the damaged file {}", path.display())]
    Damaged { path: PathBuf, source: io::Error },
}

/// Verifies the merged image with this reference or digest, and removes it if it is damaged. Machines that use it keep
/// the file.
pub(super) fn verify(cache: &Cache, name: &str) -> Result<Verified, VerifyFault> {
    let found = find(&list(cache), name)?;
    let is_merged = |file: &CachedFile| cache.merged.digest_of(&file.path).as_deref() == Some(&*found.digest);
    let Some(merged) = cache.files().into_iter().find(is_merged) else { return Ok(Verified::NotMerged) };
    let checked = private_folder::open(&merged.path)
        .and_then(|file| Ok((verifier::integrity(&file, &MergeControl::default())?, file)));
    match checked {
        Ok((Integrity::Whole, _)) => Ok(Verified::Whole),
        Ok((Integrity::Damaged, file)) => match verifier::remove_damaged(&file, &merged.path) {
            Ok(()) => Ok(Verified::Damaged),
            Err(source) => Err(VerifyFault::Damaged { path: merged.path, source }),
        },
        Err(source) => Err(VerifyFault::Read { path: merged.path, source }),
    }
}

/// Removes a reference, and also the merged image if no reference is left. Given a digest, removes the merged image and
/// all its references. Also removes blobs that no image needs.
pub(super) fn remove(cache: &Cache, name: &str) -> Result<Removed, RemoveFault> {
    let found = find(&list(cache), name)?;
    let full = full_name(name);
    let by_reference = found.references.contains(&full);
    let mut removed = Removed::default();
    if !by_reference || found.references.len() == 1 {
        let is_merged = |file: &CachedFile| {
            file.kind == FileKind::Merged && cache.merged.digest_of(&file.path).as_deref() == Some(&*found.digest)
        };
        if let Some(merged) = cache.files().into_iter().find(is_merged) {
            match evict::remove(&merged, &mut removed) {
                Ok(true) => {}
                Ok(false) => {
                    return Err(RemoveFault::InUse { name: name.to_owned(), users: lease::holders(&merged.path) });
                }
                Err(source) => return Err(RemoveFault::Remove { path: merged.path, source }),
            }
        }
    }
    for reference in found.references.iter().filter(|reference| !by_reference || **reference == full) {
        drop(std::fs::remove_file(cache.records.path_of(reference)));
    }
    removed += remove_unneeded(cache);
    Ok(removed)
}

/// Evicts files by the rules, and removes blobs that no image needs.
pub(super) fn prune(cache: &Cache, rules: &EvictionRules) -> Removed {
    let mut removed = evict::evict(cache, rules);
    removed += remove_unneeded(cache);
    removed
}

/// Expands a reference to its full form, as in records: `python` becomes `docker.io/library/python:latest`.
fn full_name(name: &str) -> String {
    name.parse::<ImageRef>().map_or_else(|_| name.to_owned(), |image| image.to_string())
}

/// Finds an image by its reference, or by an unambiguous prefix of its digest. Images with the same digest are the
/// same.
pub(super) fn find(all: &[CachedImage], name: &str) -> Result<CachedImage, UnknownImage> {
    let full = full_name(name);
    let by_reference = all.iter().find(|image| image.references.contains(&full));
    // A prefix may omit the algorithm, as in the output of `waggle image ls`.
    let is_digest = |image: &&CachedImage| {
        let hex = image.digest.split_once(':').map_or(&*image.digest, |(_, hex)| hex);
        name.len() >= DIGEST_CHARS_MIN && (image.digest.starts_with(name) || hex.starts_with(name))
    };
    let mut seen = HashSet::new();
    let mut by_digest = all.iter().filter(is_digest).filter(|image| seen.insert(image.digest.clone()));
    let found = by_reference.or_else(|| by_digest.next().filter(|_| by_digest.next().is_none()));
    found.cloned().ok_or_else(|| UnknownImage { name: name.to_owned() })
}

/// Lists all images, sorted by their references.
pub(super) fn list(cache: &Cache) -> Vec<CachedImage> {
    let files = cache.files();
    let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut by_digest: BTreeMap<String, CachedImage> = BTreeMap::new();
    for merged in files.iter().filter(|file| file.kind == FileKind::Merged) {
        let Some(digest) = cache.merged.digest_of(&merged.path) else { continue };
        let image = by_digest.entry(digest.clone()).or_insert_with(|| CachedImage::new(digest));
        image.merged_bytes = merged.bytes;
        image.used_unix_s = seconds(merged.used);
        image.users = lease::holders(&merged.path);
    }
    for (path, record) in cache.records.all() {
        let digest = record.manifest.digest().to_string();
        let image = by_digest.entry(digest.clone()).or_insert_with(|| CachedImage::new(digest));
        let used = path.metadata().and_then(|metadata| metadata.modified()).map_or(0, seconds);
        image.references.push(record.reference);
        image.resolved_unix_s = image.resolved_unix_s.max(Some(record.resolved_unix_s));
        image.used_unix_s = image.used_unix_s.max(used);
        let blobs: HashSet<_> = blob_paths(cache, &record.manifest).collect();
        image.pulled_bytes = files.iter().filter(|file| blobs.contains(&file.path)).map(|file| file.bytes).sum();
    }
    let mut all: Vec<_> = by_digest.into_values().collect();
    all.sort_by(|one, other| one.references.cmp(&other.references));
    all
}

/// Returns the paths of an image's blobs: the manifest and, if the cache has the manifest, configuration and layers.
fn blob_paths(cache: &Cache, manifest: &Descriptor) -> impl Iterator<Item = PathBuf> {
    let mut blobs = vec![manifest.clone()];
    if cache.blobs.has(manifest) {
        blobs.extend(cache.parts("", manifest).unwrap_or_default());
    }
    blobs.into_iter().map(|blob| cache.blobs.path_of(blob.digest()))
}

/// Removes the blobs that no recorded image needs. Removes nothing if the blobs stay locked by pulls or merges.
fn remove_unneeded(cache: &Cache) -> Removed {
    let mut removed = Removed::default();
    let lock = (0..LOCK_TRIES).find_map(|at| {
        if at > 0 {
            std::thread::sleep(LOCK_INTERVAL);
        }
        cache.blobs.try_lock_exclusive().ok().flatten()
    });
    if lock.is_none() {
        return removed;
    }
    let records = cache.records.all();
    let needed: HashSet<_> = records.iter().flat_map(|(_, record)| blob_paths(cache, &record.manifest)).collect();
    for file in cache.files() {
        if file.kind == FileKind::Blob && !needed.contains(&file.path) {
            evict::remove_or_log(&file, &mut removed);
        }
    }
    drop(lock);
    removed
}
