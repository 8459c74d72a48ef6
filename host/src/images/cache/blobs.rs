// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Blobs by their digests, each there whole or not at all.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use oci_spec::image::{Descriptor, Digest};

use super::{PrepareFault, usage};
use crate::{
    files::{
        draft::{Draft, DraftFolder},
        private_folder,
    },
    images::merge::Hasher,
};

const FOLDER: &str = "blobs";
const ALGORITHMS: [&str; 2] = ["sha256", "sha512"];
/// Shared by who needs blobs to stay, exclusive for who removes some.
const LOCK_NAME: &str = ".lock";
const READ_BUFFER_BYTES: usize = 256 * 1024;

/// The folder of blobs.
#[derive(Debug)]
pub(super) struct Blobs {
    cache_dir: PathBuf,
    drafts: DraftFolder,
}

impl Blobs {
    pub(super) fn open(cache_dir: &Path) -> Result<Self, PrepareFault> {
        let drafts = DraftFolder::open(cache_dir.join(FOLDER))?;
        for algorithm in ALGORITHMS {
            let folder = drafts.path().join(algorithm);
            private_folder::ensure(&folder).map_err(file_fault("make the folder", &folder))?;
        }
        Ok(Self { cache_dir: cache_dir.to_owned(), drafts })
    }

    pub(super) fn folder(&self) -> &Path {
        self.drafts.path()
    }

    pub(super) fn path_of(&self, digest: &Digest) -> PathBuf {
        // A digest has no slash: its parser sees to that.
        self.drafts.path().join(digest.algorithm().as_ref()).join(digest.digest())
    }

    pub(super) fn has(&self, descriptor: &Descriptor) -> bool {
        let found = fs::metadata(self.path_of(descriptor.digest()));
        found.is_ok_and(|metadata| metadata.is_file() && metadata.len() == descriptor.size())
    }

    /// Starts a blob; dropping the draft removes it.
    pub(super) fn draft(&self) -> Result<Draft, PrepareFault> {
        Ok(self.drafts.draft()?)
    }

    /// Gives a draft, which the caller has found to be what the digest names, its place.
    pub(super) fn publish(&self, draft: Draft, digest: &Digest) -> Result<(), PrepareFault> {
        // One of another length in its place was damaged by something else.
        Ok(draft.replace(&self.path_of(digest))?)
    }

    /// Keeps content that the caller has found to be what the digest names.
    pub(super) fn put(&self, digest: &Digest, content: &[u8]) -> Result<(), PrepareFault> {
        let draft = self.draft()?;
        (&mut draft.file()).write_all(content).map_err(file_fault("write", draft.path()))?;
        self.publish(draft, digest)
    }

    /// Removes those of the blobs that are not what their digests name any more, and says how many.
    pub(super) fn drop_corrupt<'a>(&self, blobs: impl Iterator<Item = &'a Descriptor>) -> usize {
        let mut dropped = 0;
        for descriptor in blobs {
            let path = self.path_of(descriptor.digest());
            if matches!(is_right(&path, descriptor), Ok(false)) && fs::remove_file(&path).is_ok() {
                tracing::warn!(blob = %descriptor.digest(), "dropped a blob of the image cache that was corrupt");
                dropped += 1;
            }
        }
        dropped
    }

    /// Keeps all blobs where they are while it is held. Waits for who removes some, which is for moments.
    pub(super) fn hold(&self) -> Result<File, PrepareFault> {
        let path = self.cache_dir.join(LOCK_NAME);
        let file = open_lock(&path).map_err(file_fault("open", &path))?;
        file.lock_shared().map_err(file_fault("lock", &path))?;
        Ok(file)
    }

    /// Nothing if somebody needs blobs to stay.
    pub(super) fn try_alone(&self) -> io::Result<Option<File>> {
        let file = open_lock(&self.cache_dir.join(LOCK_NAME))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Notes that the blobs were used now.
    pub(super) fn touch<'a>(&self, digests: impl Iterator<Item = &'a Digest>) {
        digests.for_each(|digest| usage::touch(&self.path_of(digest)));
    }
}

fn open_lock(path: &Path) -> io::Result<File> {
    File::options().create(true).truncate(false).write(true).open(path)
}

fn is_right(path: &Path, descriptor: &Descriptor) -> io::Result<bool> {
    let Some(mut hasher) = Hasher::of(descriptor.digest()) else { return Ok(false) };
    let mut file = File::open(path)?;
    let mut buffer = vec![0; READ_BUFFER_BYTES];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish() == descriptor.digest().digest()),
            Ok(read) => hasher.update(buffer.get(..read).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

pub(super) fn file_fault(operation: &'static str, path: &Path) -> impl Fn(io::Error) -> PrepareFault {
    let path = path.display().to_string();
    move |source| PrepareFault::CacheFile { operation, path: path.clone(), source }
}
