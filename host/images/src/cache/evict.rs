// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Evicts files that exceed the limits of age or total size. The least recently used files are evicted first. Files in
//! use are never evicted.
//!
//! A file's modification time is the time of its last use. A layer is used when it is merged, and a merged image is
//! used whenever a machine starts from it. The layers of an image are therefore evicted before the merged image.

use std::{
    collections::HashSet,
    fs, io,
    ops::AddAssign,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use super::{
    folder::{Cache, CachedFile, FileKind},
    lease,
};

/// Limits of the cache. Without a limit, nothing is evicted.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct EvictionRules {
    /// Maximum time since a file's last use.
    pub age_max: Option<Duration>,
    /// Maximum disk usage of all files together.
    pub bytes_max: Option<u64>,
    /// Maximum disk usage of the images that only clients have named.
    pub clients_bytes_max: Option<u64>,
}

impl EvictionRules {
    /// Evicts everything that is not in use.
    pub const EVERYTHING: Self = Self { age_max: Some(Duration::ZERO), bytes_max: Some(0), clients_bytes_max: Some(0) };

    fn is_too_old(&self, file: &CachedFile, now: SystemTime) -> bool {
        self.age_max.is_some_and(|max| now.duration_since(file.used).is_ok_and(|age| age > max))
    }
}

/// Totals of the removed files.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Serialize)]
pub struct Removed {
    /// Number of merged images.
    pub images: u32,
    /// Number of other files, mostly layers.
    pub files: u32,
    /// Disk usage of the removed files.
    pub bytes: u64,
}

impl AddAssign for Removed {
    fn add_assign(&mut self, more: Self) {
        self.images += more.images;
        self.files += more.files;
        self.bytes = self.bytes.saturating_add(more.bytes);
    }
}

/// Returns the files that may be evicted, least recently used first. With a limit of bytes, all blobs and merged images
/// are included; the caller stops once enough bytes have been freed.
fn candidates(mut all: Vec<CachedFile>, now: SystemTime, rules: &EvictionRules) -> Vec<CachedFile> {
    all.sort_by(|one, other| one.used.cmp(&other.used).then_with(|| one.path.cmp(&other.path)));
    let is_counted = |file: &CachedFile| rules.bytes_max.is_some() && file.kind != FileKind::Record;
    all.into_iter().filter(|file| rules.is_too_old(file, now) || is_counted(file)).collect()
}

/// Removes files until the rules are met. Files in use stay.
pub(super) fn evict(cache: &Cache, rules: &EvictionRules) -> Removed {
    let (all, mut bytes_left) = (cache.files(), cache.bytes());
    let now = SystemTime::now();
    // Blobs and records stay while any process pulls or merges.
    let lock = cache.blobs.try_lock_exclusive().ok().flatten();
    let needed = needed_by_leased(cache);
    let mut removed = Removed::default();
    for file in candidates(all, now, rules).into_iter().filter(|file| !needed.contains(&file.path)) {
        let too_much = rules.bytes_max.is_some_and(|max| bytes_left > max);
        if !(too_much || rules.is_too_old(&file, now)) || (file.kind != FileKind::Merged && lock.is_none()) {
            continue;
        }
        if remove_or_log(&file, &mut removed) {
            bytes_left = bytes_left.saturating_sub(file.bytes);
        }
    }
    if removed != Removed::default() {
        let Removed { images, files, bytes } = removed;
        tracing::info!(images, files, bytes, "evicted images from the cache");
    }
    removed
}

/// Returns the records and documents of images in use. Without these files, the next start would need a pull.
fn needed_by_leased(cache: &Cache) -> HashSet<PathBuf> {
    let mut needed = HashSet::new();
    for (path, record) in cache.records.all() {
        if !lease::is_leased(&cache.merged.path_of(record.manifest.digest())) {
            continue;
        }
        let parts = cache.parts(&record.reference, &record.manifest).unwrap_or_default();
        needed.insert(path);
        needed.insert(cache.blobs.path_of(record.manifest.digest()));
        // The first part is the configuration.
        needed.extend(parts.first().map(|config| cache.blobs.path_of(config.digest())));
    }
    needed
}

/// Removes a file unless it is leased. Returns whether the file was removed. For blobs and records, the caller must
/// hold the exclusive lock.
pub(super) fn remove(file: &CachedFile, removed: &mut Removed) -> io::Result<bool> {
    match file.kind {
        FileKind::Merged => {
            if !lease::remove_unleased(&file.path)? {
                return Ok(false);
            }
            removed.images += 1;
        }
        FileKind::Blob | FileKind::Record => {
            fs::remove_file(&file.path)?;
            removed.files += 1;
        }
    }
    removed.bytes = removed.bytes.saturating_add(file.bytes);
    Ok(true)
}

/// Like [`remove`], but logs an error and returns false.
pub(super) fn remove_or_log(file: &CachedFile, removed: &mut Removed) -> bool {
    remove(file, removed).unwrap_or_else(|error| {
        tracing::warn!(path = %file.path.display(), %error, "failed to remove a file of the image cache");
        false
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn check(rules: EvictionRules, expected: &[&str]) {
        let now = SystemTime::UNIX_EPOCH + 100 * DAY;
        let file =
            |name: &str, kind, days: u32| CachedFile { path: name.into(), kind, bytes: 10, used: now - days * DAY };
        let all = vec![
            file("new", FileKind::Merged, 0),
            file("older", FileKind::Blob, 5),
            file("record", FileKind::Record, 9),
            file("old", FileKind::Merged, 8),
        ];
        let chosen = candidates(all, now, &rules);
        let names: Vec<_> = chosen.iter().map(|file| file.path.to_str().unwrap()).collect();
        assert_eq!(names, expected);
    }

    #[test]
    fn failed_removal_is_an_error_and_a_leased_file_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name| CachedFile {
            path: folder.path().join(name),
            kind: FileKind::Merged,
            bytes: 10,
            used: SystemTime::UNIX_EPOCH,
        };
        let (leased, broken) = (file("leased"), file("broken"));
        fs::write(&leased.path, "x").unwrap();
        let _lease = lease::lease(&leased.path).unwrap().unwrap();
        // A folder cannot be removed as a file.
        fs::create_dir(&broken.path).unwrap();
        let mut removed = Removed::default();
        assert!(!remove(&leased, &mut removed).unwrap());
        assert_eq!(remove(&broken, &mut removed).unwrap_err().kind(), io::ErrorKind::IsADirectory);
        assert_eq!(removed, Removed::default());
    }

    #[test]
    fn evicts_least_recently_used_files_first() {
        let none = EvictionRules::default();
        check(none, &[]);
        check(EvictionRules { age_max: Some(7 * DAY), ..none }, &["record", "old"]);
        check(EvictionRules { age_max: Some(7 * DAY), bytes_max: Some(1), ..none }, &["record", "old", "older", "new"]);
        check(EvictionRules { bytes_max: Some(1), ..none }, &["old", "older", "new"]);
    }
}
