// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! OCI layouts, in a folder or in a tar file, and the cache's blobs: from a tag to a manifest, its configuration and
//! its layers.
//!
//! The chain is `index.json` → (index →)* manifest → configuration and layers. Everything behind `index.json` is a
//! blob, named by its digest and checked against it.

use oci_spec::image::{
    Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType, OciLayout, Os, Platform,
};
use serde::de::DeserializeOwned;

pub(super) use super::source::Source;
use super::{
    blob::BlobFault,
    limits::{DOCUMENT_BYTES_MAX, INDEX_DEPTH_MAX, INDEXES_READ_MAX, LAYERS_MAX, PLATFORMS_NAMED_MAX},
};

/// Where a layout says which tag a manifest has.
const TAG_ANNOTATION: &str = "org.opencontainers.image.ref.name";
const DEFAULT_TAG: &str = "latest";
const INDEX_TYPES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const MANIFEST_TYPES: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];

/// A layout cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LayoutFault {
    /// The folder or file cannot be opened.
    #[error("failed to open {path}")]
    Open {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// It is something else than a layout.
    #[error("{path} is not an OCI layout: it has no file {missing:?}")]
    NotALayout {
        /// The folder or tar file.
        path: String,
        /// The file that a layout has.
        missing: &'static str,
    },
    /// The tar file of an archive is damaged.
    #[error("{path} is not a tar file that can be read")]
    Archive {
        /// The tar file.
        path: String,
        /// What is wrong.
        source: super::tar_stream::TarFault,
    },
    /// A tar file with more files than a layout has.
    #[error("{path} has more than {max} files")]
    ArchiveMembers {
        /// The tar file.
        path: String,
        /// Files there may be.
        max: usize,
    },
    /// A version of the layout that is not known.
    #[error("the layout's version is {found:?}; 1.0.0 is supported")]
    Version {
        /// The version it has.
        found: String,
    },
    /// A JSON document that is too large to read into memory.
    #[error("{document} has {bytes} bytes, and at most {DOCUMENT_BYTES_MAX} are allowed")]
    DocumentTooLarge {
        /// Which.
        document: String,
        /// Its bytes.
        bytes: u64,
    },
    /// A JSON document that is not what it should be.
    #[error("{document} is not valid")]
    Document {
        /// Which.
        document: String,
        /// Where it fails.
        source: serde_json::Error,
    },
    /// A media type where another is needed.
    #[error("{document} has the media type {found:?} where {expected} is needed")]
    MediaType {
        /// Which.
        document: String,
        /// Its media type.
        found: String,
        /// What would be right.
        expected: &'static str,
    },
    /// Indexes in indexes in indexes.
    #[error("its indexes are nested more than {INDEX_DEPTH_MAX} deep")]
    TooDeep,
    /// Indexes beside indexes.
    #[error("more than {INDEXES_READ_MAX} indexes would have to be read to find the image")]
    TooManyIndexes,
    /// No image has the tag.
    #[error("it has no image tagged {tag:?}; {}", tags_there_are(tags))]
    TagNotFound {
        /// The tag asked for.
        tag: String,
        /// The tags there are.
        tags: Vec<String>,
    },
    /// A layout without images.
    #[error("it holds no image")]
    Empty,
    /// Several images, and nothing says which.
    #[error("it holds several images and none is tagged latest: add :TAG; {}", tags_there_are(tags))]
    Ambiguous {
        /// The tags there are.
        tags: Vec<String>,
    },
    /// An image for other machines only.
    #[error("the image is for {}, and linux/amd64 is needed", found.join(", "))]
    Platform {
        /// What it is for.
        found: Vec<String>,
    },
    /// Too many layers.
    #[error("the image has {layers} layers, and at most {LAYERS_MAX} are allowed")]
    TooManyLayers {
        /// How many.
        layers: usize,
    },
    /// Configuration and manifest do not fit.
    #[error("the manifest has {layers} layers and the configuration {diff_ids}")]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
    /// A blob is missing or is not what its digest names.
    #[error("failed to read {document}")]
    Blob {
        /// Which.
        document: String,
        /// What is wrong.
        source: BlobFault,
    },
}

fn tags_there_are(tags: &[String]) -> String {
    if tags.is_empty() { "its images have no tags".to_owned() } else { format!("there are: {}", tags.join(", ")) }
}

/// How a layer's archive is compressed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
}

#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub(super) descriptor: Descriptor,
    pub(super) compression: Compression,
}

/// One image of a layout, for this machine's platform.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) manifest: Descriptor,
    pub(super) config: ImageConfiguration,
    /// Lowest first.
    pub(super) layers: Vec<Layer>,
}

/// Finds the image that `tag` names, or without a tag the only one or the one tagged `latest`.
pub(super) fn find(source: &Source, tag: Option<&str>) -> Result<Image, LayoutFault> {
    check_version(source)?;
    let index: ImageIndex = parse("index.json", &source.read_document("index.json")?)?;
    check_own_type("index.json", index.media_type().as_ref(), &INDEX_TYPES, "an image index")?;
    let mut search = PlatformSearch::new(choose_tag(index.manifests(), tag)?.into_iter().cloned());
    let manifest = loop {
        match search.next_step()? {
            Step::Found(manifest) => break manifest,
            Step::Read(index) => search.add(&source.open_blob(&index)?.read_whole().map_err(in_document(&index))?)?,
        }
    };
    read_image(source, manifest)
}

/// Everything about the image with this manifest but its layers' content.
pub(super) fn read_image(source: &Source, manifest: Descriptor) -> Result<Image, LayoutFault> {
    let content = read_manifest(source, &manifest)?;
    let document = format!("the configuration {}", content.config().digest());
    let config: ImageConfiguration = read(source, content.config(), &document)?;
    if (config.os(), config.architecture()) != (&Os::Linux, &Arch::Amd64) {
        return Err(LayoutFault::Platform { found: vec![format!("{}/{}", config.os(), config.architecture())] });
    }
    let (layers, diff_ids) = (content.layers().len(), config.rootfs().diff_ids().len());
    if layers != diff_ids {
        return Err(LayoutFault::LayerCount { layers, diff_ids });
    }
    let layers = content.layers().iter().map(layer).collect::<Result<_, _>>()?;
    Ok(Image { manifest, config, layers })
}

/// What a manifest is made of: its configuration, and then its layers, all of a kind that can be used.
pub(super) fn read_parts(source: &Source, manifest: &Descriptor) -> Result<Vec<Descriptor>, LayoutFault> {
    let content = read_manifest(source, manifest)?;
    let config = content.config();
    if config.size() > DOCUMENT_BYTES_MAX {
        let document = format!("the configuration {}", config.digest());
        return Err(LayoutFault::DocumentTooLarge { document, bytes: config.size() });
    }
    content.layers().iter().try_for_each(|descriptor| layer(descriptor).map(drop))?;
    Ok(std::iter::once(config).chain(content.layers()).cloned().collect())
}

fn read_manifest(source: &Source, manifest: &Descriptor) -> Result<ImageManifest, LayoutFault> {
    let document = format!("the manifest {}", manifest.digest());
    let content: ImageManifest = read(source, manifest, &document)?;
    check_own_type(&document, content.media_type().as_ref(), &MANIFEST_TYPES, "an image manifest")?;
    let layers = content.layers().len();
    if layers > LAYERS_MAX { Err(LayoutFault::TooManyLayers { layers }) } else { Ok(content) }
}

fn check_version(source: &Source) -> Result<(), LayoutFault> {
    let layout: OciLayout = parse("oci-layout", &source.read_document("oci-layout")?)?;
    let found = layout.image_layout_version();
    if found.starts_with("1.") { Ok(()) } else { Err(LayoutFault::Version { found: found.clone() }) }
}

/// The descriptors that a tag names: several if the layout lists one for each platform.
fn choose_tag<'a>(all: &'a [Descriptor], tag: Option<&str>) -> Result<Vec<&'a Descriptor>, LayoutFault> {
    let tag_of = |descriptor: &'a Descriptor| descriptor.annotations().as_ref()?.get(TAG_ANNOTATION);
    let with = |tag: &str| all.iter().filter(|one| tag_of(one).is_some_and(|found| found == tag)).collect::<Vec<_>>();
    let tags = || all.iter().filter_map(tag_of).cloned().collect();
    if let Some(tag) = tag {
        let chosen = with(tag);
        if chosen.is_empty() {
            return Err(LayoutFault::TagNotFound { tag: tag.to_owned(), tags: tags() });
        }
        return Ok(chosen);
    }
    let latest = with(DEFAULT_TAG);
    let untagged = all.iter().all(|descriptor| tag_of(descriptor).is_none());
    let platforms = all.iter().filter(|descriptor| descriptor.platform().is_some()).count();
    match all.len() {
        0 => Err(LayoutFault::Empty),
        1 => Ok(all.iter().collect()),
        _ if !latest.is_empty() => Ok(latest),
        // One image for several platforms.
        count if untagged && platforms == count => Ok(all.iter().collect()),
        _ => Err(LayoutFault::Ambiguous { tags: tags() }),
    }
}

/// One way down from indexes to the first manifest for this platform. Who drives it reads the indexes that it asks for.
#[derive(Debug)]
pub(crate) struct PlatformSearch {
    /// What is still to be looked at, the next one last, with the levels of indexes that may lie below it.
    ahead: Vec<(Descriptor, u32)>,
    /// The levels that may lie below the index that was asked for.
    depth_left: u32,
    indexes_left: u32,
    /// Other platforms that were seen, each once.
    others: Vec<String>,
}

/// What a search wants next.
#[derive(Debug)]
pub(crate) enum Step {
    /// An index's content.
    Read(Descriptor),
    /// Nothing: this is the manifest.
    Found(Descriptor),
}

impl PlatformSearch {
    pub(crate) fn new(candidates: impl Iterator<Item = Descriptor>) -> Self {
        let mut ahead: Vec<_> = candidates.map(|descriptor| (descriptor, INDEX_DEPTH_MAX)).collect();
        ahead.reverse();
        Self { ahead, depth_left: 0, indexes_left: INDEXES_READ_MAX, others: Vec::new() }
    }

    pub(crate) fn next_step(&mut self) -> Result<Step, LayoutFault> {
        while let Some((descriptor, depth_left)) = self.ahead.pop() {
            let media_type = descriptor.media_type().as_ref();
            let document = || format!("the entry {}", descriptor.digest());
            if let Some(platform) = descriptor.platform().as_ref().filter(|platform| !fits(platform)) {
                self.note(platform);
            } else if MANIFEST_TYPES.contains(&media_type) {
                return Ok(Step::Found(descriptor));
            } else if INDEX_TYPES.contains(&media_type) {
                self.depth_left = depth_left.checked_sub(1).ok_or(LayoutFault::TooDeep)?;
                self.indexes_left = self.indexes_left.checked_sub(1).ok_or(LayoutFault::TooManyIndexes)?;
                if descriptor.size() > DOCUMENT_BYTES_MAX {
                    return Err(LayoutFault::DocumentTooLarge { document: document(), bytes: descriptor.size() });
                }
                return Ok(Step::Read(descriptor));
            } else {
                let expected = "an image manifest or an image index";
                return Err(LayoutFault::MediaType { document: document(), found: media_type.to_owned(), expected });
            }
        }
        let found = std::mem::take(&mut self.others);
        Err(if found.is_empty() { LayoutFault::Empty } else { LayoutFault::Platform { found } })
    }

    /// Takes the content of the index that the last step asked for.
    pub(crate) fn add(&mut self, content: &[u8]) -> Result<(), LayoutFault> {
        let index: ImageIndex = parse("an index of the image", content)?;
        let below = index.manifests().iter().rev().map(|descriptor| (descriptor.clone(), self.depth_left));
        self.ahead.extend(below);
        Ok(())
    }

    fn note(&mut self, platform: &Platform) {
        let name = format!("{}/{}", platform.os(), platform.architecture());
        if self.others.len() < PLATFORMS_NAMED_MAX && !self.others.contains(&name) {
            self.others.push(name);
        }
    }
}

/// The media type of a manifest or an index that came without its descriptor: its own word counts, then `told`.
pub(crate) fn media_type_of(content: &[u8], told: Option<&str>) -> Result<String, LayoutFault> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Typed {
        media_type: Option<String>,
    }
    let document = "the manifest";
    let own = parse::<Typed>(document, content)?.media_type;
    let found = own.as_deref().or(told).unwrap_or_default();
    // A header may say more: a character set.
    let found = found.split_once(';').map_or(found, |(kind, _)| kind).trim();
    if INDEX_TYPES.contains(&found) || MANIFEST_TYPES.contains(&found) {
        return Ok(found.to_owned());
    }
    let expected = "an image manifest or an image index";
    Err(LayoutFault::MediaType { document: document.to_owned(), found: found.to_owned(), expected })
}

/// What a registry is asked for.
pub(crate) fn accepted_types() -> String {
    [INDEX_TYPES, MANIFEST_TYPES].concat().join(", ")
}

fn fits(platform: &Platform) -> bool {
    (platform.os(), platform.architecture()) == (&Os::Linux, &Arch::Amd64)
}

fn layer(descriptor: &Descriptor) -> Result<Layer, LayoutFault> {
    let media_type = descriptor.media_type().as_ref();
    let compression = match media_type {
        "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar"
        | "application/vnd.docker.image.rootfs.diff.tar" => Compression::None,
        "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip"
        | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Compression::Gzip,
        "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Compression::Zstd,
        _ => {
            let document = format!("the layer {}", descriptor.digest());
            let expected = "a layer as plain tar, gzip or zstd";
            return Err(LayoutFault::MediaType { document, found: media_type.to_owned(), expected });
        }
    };
    Ok(Layer { descriptor: descriptor.clone(), compression })
}

fn in_document(descriptor: &Descriptor) -> impl FnOnce(BlobFault) -> LayoutFault {
    let document = format!("the index {}", descriptor.digest());
    move |source| LayoutFault::Blob { document, source }
}

fn read<T: DeserializeOwned>(source: &Source, descriptor: &Descriptor, document: &str) -> Result<T, LayoutFault> {
    if descriptor.size() > DOCUMENT_BYTES_MAX {
        return Err(LayoutFault::DocumentTooLarge { document: document.to_owned(), bytes: descriptor.size() });
    }
    let blob_fault = |source| LayoutFault::Blob { document: document.to_owned(), source };
    let content = source.open_blob(descriptor)?.read_whole().map_err(blob_fault)?;
    parse(document, &content)
}

fn parse<T: DeserializeOwned>(document: &str, content: &[u8]) -> Result<T, LayoutFault> {
    serde_json::from_slice(content).map_err(|source| LayoutFault::Document { document: document.to_owned(), source })
}

/// A document need not repeat its media type; if it does, it must be the right one.
fn check_own_type(
    document: &str,
    found: Option<&MediaType>,
    right: &[&str],
    expected: &'static str,
) -> Result<(), LayoutFault> {
    match found.map(AsRef::as_ref) {
        Some(found) if !right.contains(&found) => {
            Err(LayoutFault::MediaType { document: document.to_owned(), found: found.to_owned(), expected })
        }
        _ => Ok(()),
    }
}
