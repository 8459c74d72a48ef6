// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What goes when the cache holds too much or for too long: what was used longest ago, and never what is in use.
//!
//! A file's time of modification is when it was last used. Layers are used when they are merged, merged images whenever
//! a machine starts from them; so the layers of images in use go first.

use std::{
    collections::HashSet,
    fs,
    ops::AddAssign,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use super::{prepare::Preparer, usage};
use crate::images::merge;

/// When images go; without a limit they stay.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Rules {
    /// So long after their last use.
    pub age_max: Option<Duration>,
    /// When all files together have more bytes on the disk.
    pub bytes_max: Option<u64>,
}

impl Rules {
    fn is_too_old(&self, kept: &Kept, now: SystemTime) -> bool {
        self.age_max.is_some_and(|max| now.duration_since(kept.used).is_ok_and(|age| age > max))
    }
}

/// What was removed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Serialize)]
pub struct Dropped {
    /// Merged images.
    pub images: u32,
    /// Files of other kinds: layers, mostly.
    pub files: u32,
    /// What they took of the disk.
    pub bytes: u64,
}

impl AddAssign for Dropped {
    fn add_assign(&mut self, more: Self) {
        self.images += more.images;
        self.files += more.files;
        self.bytes = self.bytes.saturating_add(more.bytes);
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Merged,
    Blob,
    Record,
}

/// A file of the cache.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Kept {
    pub(super) path: PathBuf,
    pub(super) kind: Kind,
    pub(super) bytes: u64,
    pub(super) used: SystemTime,
}

/// All files of the cache but the unfinished.
pub(super) fn kept(preparer: &Preparer) -> Vec<Kept> {
    let mut all = in_folder(preparer.merged.folder(), Kind::Merged);
    for folder in preparer.merged.other_folders() {
        all.extend(in_folder(&folder, Kind::Merged));
    }
    all.extend(in_folder(preparer.records.folder(), Kind::Record));
    for algorithm in fs::read_dir(preparer.blobs.folder()).into_iter().flatten().filter_map(Result::ok) {
        all.extend(in_folder(&algorithm.path(), Kind::Blob));
    }
    all
}

fn in_folder(folder: &Path, kind: Kind) -> Vec<Kept> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let kept = entries.filter_map(|entry| {
        let metadata = entry.metadata().ok()?;
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        (metadata.is_file() && !hidden).then(|| Kept {
            path: entry.path(),
            kind,
            bytes: metadata.blocks().saturating_mul(512),
            used: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
        })
    });
    kept.collect()
}

/// The files that have to go, those first that were used longest ago, and those after them that go if these stay.
fn choose(mut all: Vec<Kept>, now: SystemTime, rules: &Rules) -> Vec<Kept> {
    all.sort_by(|one, other| one.used.cmp(&other.used).then_with(|| one.path.cmp(&other.path)));
    let is_counted = |kept: &Kept| rules.bytes_max.is_some() && kept.kind != Kind::Record;
    all.into_iter().filter(|kept| rules.is_too_old(kept, now) || is_counted(kept)).collect()
}

/// Removes what the rules say.
pub(super) fn tidy(preparer: &Preparer, rules: &Rules) -> Dropped {
    let all = kept(preparer);
    let mut bytes_left = all.iter().fold(0, |sum: u64, kept| sum.saturating_add(kept.bytes));
    let now = SystemTime::now();
    // Blobs and records stay while anybody pulls or merges.
    let alone = preparer.blobs.try_alone().ok().flatten();
    let needed = needed_by_users(preparer);
    let mut dropped = Dropped::default();
    for kept in choose(all, now, rules).into_iter().filter(|kept| !needed.contains(&kept.path)) {
        let too_much = rules.bytes_max.is_some_and(|max| bytes_left > max);
        if !(too_much || rules.is_too_old(&kept, now)) || (kept.kind != Kind::Merged && alone.is_none()) {
            continue;
        }
        if remove(&kept, &mut dropped) {
            bytes_left = bytes_left.saturating_sub(kept.bytes);
        }
    }
    if dropped != Dropped::default() {
        let Dropped { images, files, bytes } = dropped;
        tracing::info!(images, files, bytes, "removed images that were too old or too many");
    }
    dropped
}

/// The names of the images in use, and the documents without which those names would have to be pulled again.
fn needed_by_users(preparer: &Preparer) -> HashSet<PathBuf> {
    let mut needed = HashSet::new();
    for (path, record) in preparer.records.all() {
        if !usage::is_leased(&preparer.merged.path_of(record.manifest.digest())) {
            continue;
        }
        let parts = merge::parts(&record.reference, &preparer.cache_dir, &record.manifest).unwrap_or_default();
        needed.insert(path);
        needed.insert(preparer.blobs.path_of(record.manifest.digest()));
        // The first part is the configuration.
        needed.extend(parts.first().map(|config| preparer.blobs.path_of(config.digest())));
    }
    needed
}

/// Removes a file unless it is in use, and says whether it did. Who removes blobs or records is alone with them.
pub(super) fn remove(kept: &Kept, dropped: &mut Dropped) -> bool {
    let removed = match kept.kind {
        Kind::Merged => usage::remove_unused(&kept.path),
        Kind::Blob | Kind::Record => fs::remove_file(&kept.path).map(|()| true),
    };
    match removed {
        Ok(true) => {}
        Ok(false) => return false,
        Err(error) => {
            tracing::warn!(path = %kept.path.display(), %error, "failed to remove a file of the image cache");
            return false;
        }
    }
    match kept.kind {
        Kind::Merged => dropped.images += 1,
        Kind::Blob | Kind::Record => dropped.files += 1,
    }
    dropped.bytes = dropped.bytes.saturating_add(kept.bytes);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn check(rules: Rules, expected: &[&str]) {
        let now = SystemTime::UNIX_EPOCH + 100 * DAY;
        let file = |name: &str, kind, days: u32| Kept { path: name.into(), kind, bytes: 10, used: now - days * DAY };
        let all = vec![
            file("new", Kind::Merged, 0),
            file("older", Kind::Blob, 5),
            file("record", Kind::Record, 9),
            file("old", Kind::Merged, 8),
        ];
        let chosen = choose(all, now, &rules);
        let names: Vec<_> = chosen.iter().map(|kept| kept.path.to_str().unwrap()).collect();
        assert_eq!(names, expected);
    }

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        check(Rules::default(), &[]);
        check(Rules { age_max: Some(7 * DAY), bytes_max: None }, &["record", "old"]);
        check(Rules { age_max: Some(7 * DAY), bytes_max: Some(1) }, &["record", "old", "older", "new"]);
        check(Rules { age_max: None, bytes_max: Some(1) }, &["old", "older", "new"]);
    }
}
