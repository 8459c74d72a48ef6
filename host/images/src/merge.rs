// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Merges an image into an EROFS file for a machine's disk. The image is in an OCI layout, or in the cache's blobs.
//!
//! Each manifest gives one file. No entry is unpacked onto the host's file system. Pulling, caching and leases are in
//! `cache`.

mod blob;
mod compression;
mod config;
mod control;
mod entry_name;
mod erofs;
mod file_range;
mod layers;
mod layout;
mod layout_fault;
mod limits;
mod pax;
mod source;
mod sparse;
mod sparse_writer;
mod tar_stream;
mod trailer;
mod tree;
mod xattrs;

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use oci_spec::image::{Descriptor, Digest};
use waggle_shared::draft::{DraftFault, DraftFolder};

pub(crate) use self::{
    blob::Hasher,
    layout::{PlatformSearch, SearchStep, accepted_types, media_type_of},
    limits::{DOCUMENT_BYTES_MAX, EXPANDED_BYTES_MAX, MERGES_AT_ONCE},
    trailer::{Integrity, check as check_integrity},
};
pub use self::{config::ImageAgent, control::MergeControl};
use self::{
    config::{CheckedConfig, ConfigFault},
    layers::MergeFault,
    layout::Image,
    layout_fault::LayoutFault,
    source::Source,
};
use crate::reference::{ImageRef, LocalRef};

/// Folder of merged images. The version in the name changes with the rules of merging, so images that were merged by
/// older rules are not used.
const MERGED_FOLDER: &str = "merged-v4";
/// Prefix of the merged folder's name in all versions.
const MERGED_FOLDER_PREFIX: &str = "merged-";
const MERGED_SUFFIX: &str = "erofs";

/// An image could not be read or merged.
#[derive(Debug, thiserror::Error)]
pub enum ImageFault {
    #[error("failed to use the image cache")]
    Cache {
        #[from]
        source: DraftFault,
    },
    #[error("the image {image} is in a registry, not on this machine")]
    NotLocal { image: String },
    #[error("failed to read the image {image}")]
    Layout { image: String, source: Box<LayoutFault> },
    #[error("failed to use the configuration of the image {image}")]
    Config { image: String, source: ConfigFault },
    #[error("failed to merge the layers of the image {image}")]
    Merge { image: String, source: Box<MergeFault> },
}

impl ImageFault {
    /// Whether the cache folder or its disk is the cause, rather than the image.
    pub(crate) fn is_of_cache(&self) -> bool {
        match self {
            Self::Cache { .. } => true,
            Self::Merge { source, .. } => source.is_of_cache(),
            Self::NotLocal { .. } | Self::Layout { .. } | Self::Config { .. } => false,
        }
    }
}

/// The checked manifest and configuration of an image, and the source of its layers.
#[derive(Debug)]
pub struct FoundImage {
    name: String,
    source: Source,
    image: Image,
    config: CheckedConfig,
}

impl FoundImage {
    /// Finds an image in a folder or a file of this machine.
    ///
    /// # Errors
    /// [`ImageFault`] if the layout or the image is invalid.
    pub fn on_this_machine(image: &ImageRef) -> Result<Self, ImageFault> {
        let name = image.to_string();
        let open = |open: fn(&Path) -> Result<Source, LayoutFault>, local: &LocalRef| {
            let source = open(local.path())?;
            let found = layout::find(&source, local.tag())?;
            Ok((source, found))
        };
        let found = match image {
            ImageRef::Registry(_) => return Err(ImageFault::NotLocal { image: name }),
            ImageRef::Layout(local) => open(Source::open_folder, local),
            ImageRef::Archive(local) => open(Source::open_archive, local),
        };
        Self::check(name, found)
    }

    /// Reads an image whose blobs are in the cache folder `folder`. Errors quote `name`.
    pub(crate) fn in_blobs(name: String, folder: &Path, manifest: &Descriptor) -> Result<Self, ImageFault> {
        let source = Source::Folder(folder.to_owned());
        let found = layout::read_image(&source, manifest.clone());
        Self::check(name, found.map(|image| (source, image)))
    }

    fn check(name: String, found: Result<(Source, Image), LayoutFault>) -> Result<Self, ImageFault> {
        let (source, image) = match found {
            Ok(found) => found,
            Err(source) => return Err(ImageFault::Layout { image: name, source: Box::new(source) }),
        };
        match config::check(&image.config) {
            Ok(config) => Ok(Self { name, source, image, config }),
            Err(source) => Err(ImageFault::Config { image: name, source }),
        }
    }

    pub(crate) fn manifest(&self) -> &Descriptor {
        &self.image.manifest
    }

    /// The layers, lowest first.
    pub(crate) fn layers(&self) -> impl Iterator<Item = &Descriptor> {
        self.image.layers.iter()
    }

    /// Total bytes of the stored layers, before decompression.
    #[must_use]
    pub fn layer_bytes(&self) -> u64 {
        self.layers().fold(0, |sum: u64, layer| sum.saturating_add(layer.size()))
    }

    /// The image's environment variables, names and values.
    #[must_use]
    pub fn env(&self) -> &[(String, String)] {
        &self.config.env
    }

    /// The image's working directory: an absolute path, which need not exist.
    #[must_use]
    pub fn working_directory(&self) -> Option<&str> {
        self.config.working_directory.as_deref()
    }

    /// The image's own guest agent, if it declares one.
    #[must_use]
    pub fn agent(&self) -> Option<&ImageAgent> {
        self.config.agent.as_ref()
    }
}

/// Returns the descriptors of a manifest's configuration and then of its layers. The manifest is in the cache folder
/// `folder`. Fails if a layer is encrypted.
pub(crate) fn parts(name: &str, folder: &Path, manifest: &Descriptor) -> Result<Vec<Descriptor>, ImageFault> {
    let found = layout::read_parts(&Source::Folder(folder.to_owned()), manifest);
    found.map_err(|source| ImageFault::Layout { image: name.to_owned(), source: Box::new(source) })
}

/// Wraps a fault of a registry's manifest or index.
pub(crate) fn layout_fault(name: &str, source: LayoutFault) -> ImageFault {
    ImageFault::Layout { image: name.to_owned(), source: Box::new(source) }
}

/// The folder of merged images, one file per manifest.
#[derive(Debug)]
pub struct Merged {
    folder: DraftFolder,
}

impl Merged {
    /// Opens the folder of merged images in the cache folder, and creates it if absent.
    ///
    /// # Errors
    /// If the folder cannot be created or is not writable.
    pub fn open(cache_dir: &Path) -> Result<Self, ImageFault> {
        let merged = Self { folder: DraftFolder::open(cache_dir.join(MERGED_FOLDER))? };
        for other in merged.other_folders() {
            DraftFolder::sweep_other(other)?;
        }
        Ok(merged)
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the folders of images that were merged by other versions of waggle. This version also evicts files in
    /// these folders, because the other versions may never run again.
    pub(crate) fn other_folders(&self) -> Vec<PathBuf> {
        let beside = self.folder().parent().and_then(|cache| fs::read_dir(cache).ok());
        let paths = beside.into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path());
        let is_merged = |path: &PathBuf| {
            let name = path.file_name().and_then(OsStr::to_str);
            path != self.folder() && name.is_some_and(|name| name.starts_with(MERGED_FOLDER_PREFIX))
        };
        paths.filter(is_merged).collect()
    }

    pub(crate) fn path_of(&self, manifest: &Digest) -> PathBuf {
        // The parser of digests rejects slashes.
        self.folder.path().join(format!("{}-{}.{MERGED_SUFFIX}", manifest.algorithm(), manifest.digest()))
    }

    /// Returns the manifest's digest, parsed from the name of a merged file. Returns `None` for a file of another
    /// version.
    pub(crate) fn digest_of(&self, path: &Path) -> Option<String> {
        if path.parent() != Some(self.folder()) {
            return None;
        }
        let name = path.file_name()?.to_str()?.strip_suffix(MERGED_SUFFIX)?.strip_suffix('.')?;
        let (algorithm, hex) = name.split_once('-')?;
        Some(format!("{algorithm}:{hex}"))
    }

    /// Merges the image's layers into one file. Blocks, and uses one CPU and up to a gigabyte of memory.
    ///
    /// # Errors
    /// [`ImageFault::Merge`] for a fault of the layers, [`ImageFault::Cache`] for a fault of the cache folder.
    pub fn merge(&self, found: &FoundImage, control: &MergeControl) -> Result<PathBuf, ImageFault> {
        let started = Instant::now();
        let FoundImage { name, source, image, .. } = found;
        let digest = image.manifest.digest();
        let path = self.path_of(digest);
        let draft = self.folder.draft()?;
        let uuid = uuid_of(digest.digest());
        // Dropping this draft removes its name. If the process is killed before, the next one removes the draft.
        let spool = self.folder.draft()?.file().try_clone().map_err(|source| MergeFault::Spool { source });
        let measure = spool
            .and_then(|spool| layers::merge(source, &image.layers, spool, draft.file(), uuid, control))
            .and_then(|measure| {
                trailer::append(draft.file(), &measure.digest).map_err(|source| MergeFault::Write { source })?;
                Ok(measure)
            })
            .map_err(|source| ImageFault::Merge { image: name.clone(), source: Box::new(source) })?;
        draft.publish(&path)?;
        tracing::info!(
            image = name,
            manifest = %digest,
            layers = image.layers.len(),
            entries = measure.entries,
            content_bytes = measure.content_bytes,
            duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            "merged an image"
        );
        Ok(path)
    }
}

/// Derives the file system's UUID from the manifest's digest. Merging an image again thus yields an identical file.
fn uuid_of(hex: &str) -> [u8; 16] {
    let mut uuid = [0; 16];
    for (at, byte) in uuid.iter_mut().enumerate() {
        let digits = hex.get(2 * at..2 * at + 2).unwrap_or("0");
        *byte = u8::from_str_radix(digits, 16).unwrap_or(0);
    }
    uuid
}
