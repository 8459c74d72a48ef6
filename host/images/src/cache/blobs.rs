// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Stores blobs by their digests. A blob appears in the folder only once it is complete.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use oci_spec::image::{Descriptor, Digest};

use super::{
    fault::{PrepareFault, file_fault},
    lease,
};
use crate::merge::Hasher;
use waggle_shared::{
    draft::{Draft, DraftFolder},
    private_folder,
};

const FOLDER: &str = "blobs";
const ALGORITHMS: [&str; 2] = ["sha256", "sha512"];
/// Name of the lock file. The file is locked shared while blobs must not be evicted, and exclusively to evict blobs.
/// Under the shared lock, only corrupt blobs are removed, and blobs of an image that does not fit on the disk.
const LOCK_NAME: &str = ".lock";
const READ_BUFFER_BYTES: usize = 256 * 1024;

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
            private_folder::ensure(&folder).map_err(file_fault("create the folder", &folder))?;
        }
        Ok(Self { cache_dir: cache_dir.to_owned(), drafts })
    }

    pub(super) fn folder(&self) -> &Path {
        self.drafts.path()
    }

    pub(super) fn path_of(&self, digest: &Digest) -> PathBuf {
        // The parser of digests rejects slashes.
        self.drafts.path().join(digest.algorithm().as_ref()).join(digest.digest())
    }

    pub(super) fn has(&self, descriptor: &Descriptor) -> bool {
        let found = fs::metadata(self.path_of(descriptor.digest()));
        found.is_ok_and(|metadata| metadata.is_file() && metadata.len() == descriptor.size())
    }

    /// Creates the draft file of a new blob. Dropping the draft removes the file.
    pub(super) fn draft(&self) -> Result<Draft, PrepareFault> {
        Ok(self.drafts.draft()?)
    }

    /// Moves a draft to the path of `digest`. The caller has verified the digest.
    pub(super) fn publish(&self, draft: Draft, digest: &Digest) -> Result<(), PrepareFault> {
        // The path may have a damaged file of another length, which the draft replaces.
        Ok(draft.replace(&self.path_of(digest))?)
    }

    /// Stores content whose digest the caller has verified.
    pub(super) fn put(&self, digest: &Digest, content: &[u8]) -> Result<(), PrepareFault> {
        let draft = self.draft()?;
        (&mut draft.file()).write_all(content).map_err(file_fault("write", draft.path()))?;
        self.publish(draft, digest)
    }

    /// Removes the blobs whose content does not match their digests. Returns the number of removed blobs.
    pub(super) fn remove_corrupt<'a>(&self, blobs: impl Iterator<Item = &'a Descriptor>) -> usize {
        let mut removed = 0;
        for descriptor in blobs {
            let path = self.path_of(descriptor.digest());
            if matches!(is_intact(&path, descriptor), Ok(false)) && fs::remove_file(&path).is_ok() {
                tracing::warn!(blob = %descriptor.digest(), "removed a corrupt blob from the image cache");
                removed += 1;
            }
        }
        removed
    }

    /// Prevents the removal of blobs until the returned lock drops. Waits for running removals, which are short.
    pub(super) fn lock_shared(&self) -> Result<File, PrepareFault> {
        let path = self.cache_dir.join(LOCK_NAME);
        let file = private_folder::open_lock(&path).map_err(file_fault("open", &path))?;
        file.lock_shared().map_err(file_fault("lock", &path))?;
        Ok(file)
    }

    /// Locks the blobs for a removal. Returns `None` while another task or process pulls or merges.
    pub(super) fn try_lock_exclusive(&self) -> io::Result<Option<File>> {
        let file = private_folder::open_lock(&self.cache_dir.join(LOCK_NAME))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Marks the blobs as used now.
    pub(super) fn touch<'a>(&self, digests: impl Iterator<Item = &'a Digest>) {
        digests.for_each(|digest| lease::touch(&self.path_of(digest)));
    }
}

fn is_intact(path: &Path, descriptor: &Descriptor) -> io::Result<bool> {
    let Some(mut hasher) = Hasher::of(descriptor.digest()) else { return Ok(false) };
    let mut file = private_folder::open(path)?;
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
