// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What the cache holds, for people: listed, looked at, and thrown away by hand.

use std::{
    collections::{BTreeMap, HashSet},
    path::PathBuf,
    time::{Duration, SystemTime},
};

use oci_spec::image::Descriptor;
use serde::Serialize;

use super::{
    Dropped, ImageStore, Rules, User,
    evict::{self, Kept, Kind},
    prepare::Preparer,
    usage,
};
use crate::{domain::image::ImageRef, images::merge};

/// How long a removal waits for pulls to end before it leaves their layers for later.
const ALONE_TRIES: u32 = 10;
const ALONE_INTERVAL: Duration = Duration::from_millis(100);

/// An image of the cache.
#[derive(Clone, Debug, Serialize)]
pub struct Listed {
    /// What it is called; nothing if only its merged file is left, and more than one name if several stand for it.
    pub references: Vec<String>,
    /// Its manifest's digest.
    pub digest: String,
    /// Bytes on the disk of the file that machines use; none if it is not merged.
    pub merged_bytes: u64,
    /// Bytes on the disk of the layers and documents that it was made from, those shared with other images included.
    pub pulled_bytes: u64,
    /// When its name was last found to stand for it, in seconds since the epoch.
    pub resolved_unix_s: Option<u64>,
    /// When it was last used, in seconds since the epoch.
    pub used_unix_s: u64,
    /// Processes that use it now.
    pub users: Vec<User>,
}

/// There is no such image.
#[derive(Debug, thiserror::Error)]
#[error("the cache has no image {name}; `waggle image ls` shows what it has")]
pub struct UnknownImage {
    /// What was asked for.
    name: String,
}

/// An image could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveFault {
    /// There is none.
    #[error(transparent)]
    Unknown(#[from] UnknownImage),
    /// A machine has it.
    #[error("the image {name} is in use by {}", pids(users))]
    InUse {
        /// What was asked for.
        name: String,
        /// By whom.
        users: Vec<User>,
    },
}

fn pids(users: &[User]) -> String {
    if users.is_empty() {
        return "another process".to_owned();
    }
    users.iter().map(|user| format!("process {}", user.pid)).collect::<Vec<_>>().join(", ")
}

impl ImageStore {
    /// All images, by their names. Blocks.
    #[must_use]
    pub fn list(&self) -> Vec<Listed> {
        list(&self.preparer)
    }

    /// The image of a reference, or of a digest or its beginning. Blocks.
    ///
    /// # Errors
    /// [`UnknownImage`] if there is none.
    pub fn inspect(&self, name: &str) -> Result<Listed, UnknownImage> {
        find(&self.preparer, name)
    }

    /// Forgets a reference; if that was the image's last, removes what only it needs. With a digest, removes the image
    /// and all its names. Blocks.
    ///
    /// # Errors
    /// [`RemoveFault`] if there is none, or a machine uses it.
    pub fn remove(&self, name: &str) -> Result<Dropped, RemoveFault> {
        let preparer = &self.preparer;
        let found = find(preparer, name)?;
        let full = full_name(name);
        let by_name = found.references.contains(&full);
        let mut dropped = Dropped::default();
        if !by_name || found.references.len() == 1 {
            let merged = evict::kept(preparer).into_iter().find(|kept| {
                kept.kind == Kind::Merged && preparer.merged.digest_of(&kept.path).as_deref() == Some(&*found.digest)
            });
            if let Some(merged) = merged
                && !evict::remove(&merged, &mut dropped)
            {
                return Err(RemoveFault::InUse { name: name.to_owned(), users: usage::users(&merged.path) });
            }
        }
        for reference in found.references.iter().filter(|reference| !by_name || **reference == full) {
            let path = preparer.records.path_of(reference);
            drop(std::fs::remove_file(path));
        }
        dropped += remove_unneeded(preparer);
        Ok(dropped)
    }

    /// Removes what the rules say, and blobs that no image needs. Blocks.
    #[must_use]
    pub fn prune(&self, rules: &Rules) -> Dropped {
        let mut dropped = evict::tidy(&self.preparer, rules);
        dropped += remove_unneeded(&self.preparer);
        dropped
    }
}

/// A reference as it is kept: `python` is `docker.io/library/python:latest`.
fn full_name(name: &str) -> String {
    name.parse::<ImageRef>().map_or_else(|_| name.to_owned(), |image| image.to_string())
}

fn find(preparer: &Preparer, name: &str) -> Result<Listed, UnknownImage> {
    let full = full_name(name);
    let all = list(preparer);
    let by_reference = all.iter().find(|listed| listed.references.contains(&full));
    // As `ls` shows it, with or without its algorithm.
    let is_digest = |listed: &&Listed| {
        let hex = listed.digest.split_once(':').map_or(&*listed.digest, |(_, hex)| hex);
        name.len() >= DIGEST_CHARS_MIN && (listed.digest.starts_with(name) || hex.starts_with(name))
    };
    let mut by_digest = all.iter().filter(is_digest);
    let found = by_reference.or_else(|| by_digest.next().filter(|_| by_digest.next().is_none()));
    found.cloned().ok_or_else(|| UnknownImage { name: name.to_owned() })
}

/// Letters of a digest that are enough to mean it.
const DIGEST_CHARS_MIN: usize = 6;

fn list(preparer: &Preparer) -> Vec<Listed> {
    let kept = evict::kept(preparer);
    let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut by_digest: BTreeMap<String, Listed> = BTreeMap::new();
    let new = |digest: String| Listed {
        references: Vec::new(),
        digest,
        merged_bytes: 0,
        pulled_bytes: 0,
        resolved_unix_s: None,
        used_unix_s: 0,
        users: Vec::new(),
    };
    for merged in kept.iter().filter(|kept| kept.kind == Kind::Merged) {
        let Some(digest) = preparer.merged.digest_of(&merged.path) else { continue };
        let listed = by_digest.entry(digest.clone()).or_insert_with(|| new(digest));
        listed.merged_bytes = merged.bytes;
        listed.used_unix_s = seconds(merged.used);
        listed.users = usage::users(&merged.path);
    }
    for (path, record) in preparer.records.all() {
        let digest = record.manifest.digest().to_string();
        let listed = by_digest.entry(digest.clone()).or_insert_with(|| new(digest));
        let used = path.metadata().and_then(|metadata| metadata.modified()).map_or(0, seconds);
        listed.references.push(record.reference);
        listed.resolved_unix_s = listed.resolved_unix_s.max(Some(record.resolved_unix_s));
        listed.used_unix_s = listed.used_unix_s.max(used);
        let parts = blobs_of(preparer, &record.manifest);
        listed.pulled_bytes = blob_bytes(preparer, &kept, &parts);
    }
    let mut all: Vec<_> = by_digest.into_values().collect();
    all.sort_by(|one, other| one.references.cmp(&other.references));
    all
}

/// An image's manifest and, as far as that is here, its parts.
fn blobs_of(preparer: &Preparer, manifest: &Descriptor) -> Vec<Descriptor> {
    let mut all = vec![manifest.clone()];
    if preparer.blobs.has(manifest) {
        all.extend(merge::parts("", &preparer.cache_dir, manifest).unwrap_or_default());
    }
    all
}

fn blob_bytes(preparer: &Preparer, kept: &[Kept], parts: &[Descriptor]) -> u64 {
    let paths: HashSet<PathBuf> = parts.iter().map(|part| preparer.blobs.path_of(part.digest())).collect();
    kept.iter().filter(|kept| paths.contains(&kept.path)).map(|kept| kept.bytes).sum()
}

/// Removes the blobs that no record's image has, unless somebody pulls all the time.
fn remove_unneeded(preparer: &Preparer) -> Dropped {
    let mut dropped = Dropped::default();
    let alone = (0..ALONE_TRIES).find_map(|at| {
        if at > 0 {
            std::thread::sleep(ALONE_INTERVAL);
        }
        preparer.blobs.try_alone().ok().flatten()
    });
    if alone.is_none() {
        return dropped;
    }
    let records = preparer.records.all();
    let needed: HashSet<PathBuf> = records
        .iter()
        .flat_map(|(_, record)| blobs_of(preparer, &record.manifest))
        .map(|blob| preparer.blobs.path_of(blob.digest()))
        .collect();
    for kept in evict::kept(preparer) {
        if kept.kind == Kind::Blob && !needed.contains(&kept.path) {
            evict::remove(&kept, &mut dropped);
        }
    }
    drop(alone);
    dropped
}

/// What removes everything that is not in use.
#[must_use]
pub const fn everything() -> Rules {
    Rules { age_max: Some(Duration::ZERO), bytes_max: Some(0) }
}
