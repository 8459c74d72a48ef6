// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Records of the manifests that references were resolved to. Each reference has one small file, which is replaced when
//! the reference is resolved again.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use oci_spec::image::Descriptor;
use sha2::{Digest as _, Sha256};
use waggle_shared::draft::DraftFolder;

use super::fault::{PrepareFault, file_fault};
use crate::reference::ImageRef;

const FOLDER: &str = "records";

/// Maximum bytes of a record. A reference has at most 4.5 KiB, and the descriptor is stored without annotations.
const RECORD_BYTES_MAX: u64 = 64 * 1024;

/// The manifest that a reference was resolved to.
#[derive(Clone, Debug, Eq, PartialEq, serde::Deserialize, serde::Serialize)]
pub(super) struct Record {
    /// The reference in its full form, with registry and tag.
    pub(super) reference: String,
    /// The manifest for this machine's platform.
    pub(super) manifest: Descriptor,
    pub(super) resolved_unix_s: u64,
}

#[derive(Debug)]
pub(super) struct Records {
    folder: DraftFolder,
}

impl Records {
    pub(super) fn open(cache_dir: &Path) -> Result<Self, PrepareFault> {
        Ok(Self { folder: DraftFolder::open(cache_dir.join(FOLDER))? })
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the path of a reference's record. The file name is a hash, because references contain characters that
    /// are invalid in file names.
    pub(super) fn path_of(&self, image: &str) -> PathBuf {
        let name: String = Sha256::digest(image).iter().map(|byte| format!("{byte:02x}")).collect();
        self.folder.path().join(format!("{name}.json"))
    }

    /// Finds the record of a reference; an invalid record counts as absent.
    pub(super) fn find(&self, image: &ImageRef) -> Option<Record> {
        let name = image.to_string();
        read(&self.path_of(&name)).ok().flatten().filter(|record| record.reference == name)
    }

    /// Records the manifest that a reference is resolved to.
    pub(super) fn put(&self, image: &ImageRef, manifest: &Descriptor) -> Result<(), PrepareFault> {
        let reference = image.to_string();
        let path = self.path_of(&reference);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let manifest = Descriptor::new(manifest.media_type().clone(), manifest.size(), manifest.digest().clone());
        let record = Record { reference, manifest, resolved_unix_s: now.as_secs() };
        let draft = self.folder.draft()?;
        let written = serde_json::to_vec(&record)
            .map_err(io::Error::from)
            .and_then(|content| (&mut draft.file()).write_all(&content));
        written.map_err(file_fault("write", &path))?;
        Ok(draft.replace(&path)?)
    }

    /// Returns all valid records with their paths, sorted by reference.
    pub(super) fn all(&self) -> Vec<(PathBuf, Record)> {
        let Ok(entries) = fs::read_dir(self.folder.path()) else { return Vec::new() };
        let paths = entries.filter_map(Result::ok).map(|entry| entry.path());
        let records = paths.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
        let mut all: Vec<_> =
            records.filter_map(|path| read(&path).ok().flatten().map(|record| (path, record))).collect();
        all.sort_by(|(_, one), (_, other)| one.reference.cmp(&other.reference));
        all
    }
}

fn read(path: &Path) -> io::Result<Option<Record>> {
    if fs::metadata(path)?.len() > RECORD_BYTES_MAX {
        return Ok(None);
    }
    let content = fs::read(path)?;
    let record = serde_json::from_slice(&content);
    if record.is_err() {
        tracing::warn!(path = %path.display(), "ignored an invalid record in the image cache");
    }
    Ok(record.ok())
}
