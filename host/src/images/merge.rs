// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Images: from an OCI layout, or blobs laid out like one, to an EROFS file that a machine can have as its disk.
//!
//! An image's layers are merged into one file, once for each manifest; nothing is ever unpacked onto the host's file
//! system. Where images come from, how long their files stay and who uses them is the image store's matter.

mod blob;
mod config;
mod entry_name;
mod erofs;
mod file_range;
mod layers;
mod layout;
mod limits;
mod pax;
mod source;
mod sparse;
mod tar_stream;
mod tree;
mod xattrs;

use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Instant,
};

use oci_spec::image::{Descriptor, Digest};

pub use self::config::ImageAgent;
pub(crate) use self::{
    blob::Hasher,
    layout::{PlatformSearch, Step, accepted_types, media_type_of},
    limits::{DOCUMENT_BYTES_MAX, EXPANDED_BYTES_MAX, MERGES_AT_ONCE},
};
use self::{
    config::{Checked, ConfigFault},
    layers::MergeFault,
    layout::{Image, LayoutFault, Source},
};
use crate::{
    domain::image::{ImageRef, LocalRef},
    files::draft::{DraftFault, DraftFolder},
};

/// Changes with the rules of merging, so that images merged by other rules are not taken for current ones.
const MERGED_FOLDER: &str = "merged-v2";
/// What the names of these folders begin with, whatever the rules.
const MERGED_FOLDER_PREFIX: &str = "merged-";
const MERGED_SUFFIX: &str = "erofs";

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
    /// It is neither a folder nor a file of this machine.
    #[error("the image {image} is in a registry, and not on this machine")]
    NotHere {
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
}

/// Follows a merge, and ends it.
#[derive(Debug, Default)]
pub struct Watch {
    stop: AtomicBool,
    read_bytes: AtomicU64,
}

impl Watch {
    /// Tells the merge that nobody waits for it any more.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Bytes of the layers, as they are stored, that have been read.
    #[must_use]
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes.load(Ordering::Relaxed)
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Fails once the merge was stopped.
    fn check(&self) -> io::Result<()> {
        if self.is_stopped() { Err(io::Error::other("it was called off")) } else { Ok(()) }
    }

    fn add_read(&self, bytes: usize) {
        self.read_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Everything about an image but its layers' content.
#[derive(Debug)]
pub struct FoundImage {
    name: String,
    source: Source,
    image: Image,
    checked: Checked,
}

impl FoundImage {
    /// Finds an image in a folder or a file of this machine.
    ///
    /// # Errors
    /// [`ImageFault`] says what is wrong with the layout or the image.
    pub fn on_this_machine(image: &ImageRef) -> Result<Self, ImageFault> {
        let name = image.to_string();
        let open = |open: fn(&Path) -> Result<Source, LayoutFault>, local: &LocalRef| {
            let source = open(local.path())?;
            let found = layout::find(&source, local.tag())?;
            Ok((source, found))
        };
        let found = match image {
            ImageRef::Registry(_) => return Err(ImageFault::NotHere { image: name }),
            ImageRef::Layout(local) => open(Source::open_folder, local),
            ImageRef::Archive(local) => open(Source::open_archive, local),
        };
        Self::check(name, found)
    }

    /// Finds the image with a manifest whose parts are blobs in `folder`; `name` is for errors.
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
            Ok(checked) => Ok(Self { name, source, image, checked }),
            Err(source) => Err(ImageFault::Config { image: name, source }),
        }
    }

    pub(crate) fn manifest(&self) -> &Descriptor {
        &self.image.manifest
    }

    /// The layers, lowest first.
    pub(crate) fn layers(&self) -> impl Iterator<Item = &Descriptor> {
        self.image.layers.iter().map(|layer| &layer.descriptor)
    }

    /// Bytes of the layers as they are stored.
    #[must_use]
    pub fn layer_bytes(&self) -> u64 {
        self.layers().fold(0, |sum: u64, layer| sum.saturating_add(layer.size()))
    }

    /// The image's environment, names and values.
    #[must_use]
    pub fn env(&self) -> &[(String, String)] {
        &self.checked.env
    }

    /// Where the image wants commands to start: an absolute path, which need not exist.
    #[must_use]
    pub fn working_directory(&self) -> Option<&str> {
        self.checked.working_directory.as_deref()
    }

    /// The agent that the image brings along, if it says so.
    #[must_use]
    pub fn agent(&self) -> Option<&ImageAgent> {
        self.checked.agent.as_ref()
    }
}

/// The configuration and the layers of the manifest in `folder`, all of them of a kind that can be used.
pub(crate) fn parts(name: &str, folder: &Path, manifest: &Descriptor) -> Result<Vec<Descriptor>, ImageFault> {
    let found = layout::read_parts(&Source::Folder(folder.to_owned()), manifest);
    found.map_err(|source| ImageFault::Layout { image: name.to_owned(), source: Box::new(source) })
}

/// A registry's answer that is no image.
pub(crate) fn layout_fault(name: &str, source: LayoutFault) -> ImageFault {
    ImageFault::Layout { image: name.to_owned(), source: Box::new(source) }
}

/// The folder of merged images, one file a manifest.
#[derive(Debug)]
pub struct Merged {
    folder: DraftFolder,
}

impl Merged {
    /// Opens the folder below the cache's, which is made if it is not there.
    ///
    /// # Errors
    /// If the folder cannot be made or is not writable.
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

    /// The folders below the cache's that hold images merged by other rules than these: other versions', for whom
    /// nobody else may be left to clear up.
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
        // A digest has no slash: its parser sees to that.
        self.folder.path().join(format!("{}-{}.{MERGED_SUFFIX}", manifest.algorithm(), manifest.digest()))
    }

    /// The manifest's digest in the name of a merged image's file; nothing if it was merged by other rules.
    pub(crate) fn digest_of(&self, path: &Path) -> Option<String> {
        if path.parent() != Some(self.folder()) {
            return None;
        }
        let name = path.file_name()?.to_str()?.strip_suffix(MERGED_SUFFIX)?.strip_suffix('.')?;
        let (algorithm, hex) = name.split_once('-')?;
        Some(format!("{algorithm}:{hex}"))
    }

    /// Merges the image's layers into its file. Blocks, and takes a processor and up to a gigabyte of memory.
    ///
    /// # Errors
    /// [`ImageFault::Merge`] says what is wrong with the layers, [`ImageFault::Cache`] with the cache.
    pub fn merge(&self, found: &FoundImage, watch: &Watch) -> Result<PathBuf, ImageFault> {
        let started = Instant::now();
        let FoundImage { name, source, image, .. } = found;
        let digest = image.manifest.digest();
        let path = self.path_of(digest);
        let draft = self.folder.draft()?;
        let uuid = uuid_of(digest.digest());
        let measure = layers::merge(source, &image.layers, self.folder.path(), draft.file(), uuid, watch)
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

/// The file system's id, from the manifest's digest: the same image is the same file, bit for bit.
fn uuid_of(hex: &str) -> [u8; 16] {
    let mut uuid = [0; 16];
    for (at, byte) in uuid.iter_mut().enumerate() {
        let digits = hex.get(2 * at..2 * at + 2).unwrap_or("0");
        *byte = u8::from_str_radix(digits, 16).unwrap_or(0);
    }
    uuid
}
