// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Reads images from OCI layouts, in a folder or in a tar file, and from the cache's blobs.
//!
//! A tag is resolved along the chain `index.json` → (index →)* manifest → configuration and layers. Everything after
//! `index.json` is a blob, which is named by its digest and verified against the digest.

use oci_spec::image::{
    Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType, OciLayout, Os, Platform,
};
use serde::de::DeserializeOwned;

use super::{
    blob::BlobFault,
    layout_fault::LayoutFault,
    limits::{DOCUMENT_BYTES_MAX, INDEX_DEPTH_MAX, INDEXES_READ_MAX, LAYERS_MAX, PLATFORMS_NAMED_MAX},
    source::Source,
};

/// The annotation with a manifest's tag.
const TAG_ANNOTATION: &str = "org.opencontainers.image.ref.name";
const DEFAULT_TAG: &str = "latest";
const INDEX_TYPES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const MANIFEST_TYPES: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
const CONFIG_TYPES: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// End of the media types of encrypted layers.
const ENCRYPTED_SUFFIX: &str = "+encrypted";

/// An image of a layout, for this machine's platform.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) manifest: Descriptor,
    pub(super) config: ImageConfiguration,
    /// Layers, lowest first.
    pub(super) layers: Vec<Descriptor>,
}

/// Finds the image with this tag. Without a tag, finds the only image or the image tagged `latest`.
pub(super) fn find(source: &Source, tag: Option<&str>) -> Result<Image, LayoutFault> {
    check_version(source)?;
    let index: ImageIndex = parse("index.json", &source.read_document("index.json")?)?;
    check_own_type("index.json", index.media_type().as_ref(), &INDEX_TYPES, "an image index")?;
    let mut search = PlatformSearch::new(choose_tag(index.manifests(), tag)?.into_iter().cloned());
    let manifest = loop {
        match search.next_step()? {
            SearchStep::Found(manifest) => break manifest,
            SearchStep::Read(index) => {
                search.add(&source.open_blob(&index)?.read_whole().map_err(in_document(&index))?)?
            }
        }
    };
    read_image(source, manifest)
}

/// Reads and checks the manifest and the configuration of an image.
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
    content.layers().iter().try_for_each(check_layer)?;
    Ok(Image { manifest, config, layers: content.layers().clone() })
}

/// Returns the descriptors of a manifest's configuration and then of its layers. Fails if a layer is encrypted.
pub(super) fn read_parts(source: &Source, manifest: &Descriptor) -> Result<Vec<Descriptor>, LayoutFault> {
    let content = read_manifest(source, manifest)?;
    let config = content.config();
    if config.size() > DOCUMENT_BYTES_MAX {
        let document = format!("the configuration {}", config.digest());
        return Err(LayoutFault::DocumentTooLarge { document, bytes: config.size() });
    }
    content.layers().iter().try_for_each(check_layer)?;
    Ok(std::iter::once(config).chain(content.layers()).cloned().collect())
}

fn read_manifest(source: &Source, manifest: &Descriptor) -> Result<ImageManifest, LayoutFault> {
    let document = format!("the manifest {}", manifest.digest());
    let content: ImageManifest = read(source, manifest, &document)?;
    check_own_type(&document, content.media_type().as_ref(), &MANIFEST_TYPES, "an image manifest")?;
    check_config(content.config())?;
    let layers = content.layers().len();
    if layers > LAYERS_MAX { Err(LayoutFault::TooManyLayers { layers }) } else { Ok(content) }
}

/// Rejects artifacts that are not images, such as charts and models: only the configuration's media type reveals them
/// before their layers are downloaded.
fn check_config(descriptor: &Descriptor) -> Result<(), LayoutFault> {
    let found = descriptor.media_type().as_ref();
    if CONFIG_TYPES.contains(&found) {
        return Ok(());
    }
    let document = format!("the configuration {}", descriptor.digest());
    Err(LayoutFault::MediaType { document, found: found.to_owned(), expected: "the configuration of an image" })
}

fn check_version(source: &Source) -> Result<(), LayoutFault> {
    let layout: OciLayout = parse("oci-layout", &source.read_document("oci-layout")?)?;
    let found = layout.image_layout_version();
    if found.starts_with("1.") { Ok(()) } else { Err(LayoutFault::Version { found: found.clone() }) }
}

/// Returns the descriptors of the image with this tag: several if the layout has one descriptor per platform.
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

/// A search through nested indexes for the first manifest of this platform. The caller reads the indexes from a layout
/// or a registry.
#[derive(Debug)]
pub(crate) struct PlatformSearch {
    /// Stack of descriptors to visit, each with the number of index levels allowed below it.
    pending: Vec<(Descriptor, u32)>,
    /// Number of index levels allowed below the index that the caller reads.
    depth_left: u32,
    indexes_left: u32,
    /// Other platforms that were found, for the error.
    others: Vec<String>,
}

/// The next step of a search.
#[derive(Debug)]
pub(crate) enum SearchStep {
    /// Read this index and pass its content to [`PlatformSearch::add`].
    Read(Descriptor),
    /// The manifest, which ends the search.
    Found(Descriptor),
}

impl PlatformSearch {
    pub(crate) fn new(candidates: impl Iterator<Item = Descriptor>) -> Self {
        let mut pending: Vec<_> = candidates.map(|descriptor| (descriptor, INDEX_DEPTH_MAX)).collect();
        pending.reverse();
        Self { pending, depth_left: 0, indexes_left: INDEXES_READ_MAX, others: Vec::new() }
    }

    pub(crate) fn next_step(&mut self) -> Result<SearchStep, LayoutFault> {
        while let Some((descriptor, depth_left)) = self.pending.pop() {
            let media_type = descriptor.media_type().as_ref();
            let document = || format!("the entry {}", descriptor.digest());
            if let Some(platform) = descriptor.platform().as_ref().filter(|platform| !fits(platform)) {
                self.note(platform);
            } else if MANIFEST_TYPES.contains(&media_type) {
                return Ok(SearchStep::Found(descriptor));
            } else if INDEX_TYPES.contains(&media_type) {
                self.depth_left = depth_left.checked_sub(1).ok_or(LayoutFault::TooDeep)?;
                self.indexes_left = self.indexes_left.checked_sub(1).ok_or(LayoutFault::TooManyIndexes)?;
                if descriptor.size() > DOCUMENT_BYTES_MAX {
                    return Err(LayoutFault::DocumentTooLarge { document: document(), bytes: descriptor.size() });
                }
                return Ok(SearchStep::Read(descriptor));
            } else {
                let expected = "an image manifest or an image index";
                return Err(LayoutFault::MediaType { document: document(), found: media_type.to_owned(), expected });
            }
        }
        let found = std::mem::take(&mut self.others);
        Err(if found.is_empty() { LayoutFault::Empty } else { LayoutFault::Platform { found } })
    }

    /// Adds the content of the index that the last [`SearchStep::Read`] requested.
    pub(crate) fn add(&mut self, content: &[u8]) -> Result<(), LayoutFault> {
        let index: ImageIndex = parse("an index of the image", content)?;
        let below = index.manifests().iter().rev().map(|descriptor| (descriptor.clone(), self.depth_left));
        self.pending.extend(below);
        Ok(())
    }

    fn note(&mut self, platform: &Platform) {
        let name = format!("{}/{}", platform.os(), platform.architecture());
        if self.others.len() < PLATFORMS_NAMED_MAX && !self.others.contains(&name) {
            self.others.push(name);
        }
    }
}

/// Returns the media type of a manifest or an index that a registry sent for a tag, without a descriptor. A media type
/// in the content takes precedence over the header of the registry's response.
pub(crate) fn media_type_of(content: &[u8], header: Option<&str>) -> Result<String, LayoutFault> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Typed {
        media_type: Option<String>,
    }
    let document = "the manifest";
    let own = parse::<Typed>(document, content)?.media_type;
    let found = own.as_deref().or(header).unwrap_or_default();
    // A header may have parameters, such as a character set.
    let found = found.split_once(';').map_or(found, |(kind, _)| kind).trim();
    if INDEX_TYPES.contains(&found) || MANIFEST_TYPES.contains(&found) {
        return Ok(found.to_owned());
    }
    let expected = "an image manifest or an image index";
    Err(LayoutFault::MediaType { document: document.to_owned(), found: found.to_owned(), expected })
}

/// Returns the `Accept` header for requests for manifests.
pub(crate) fn accepted_types() -> String {
    [INDEX_TYPES, MANIFEST_TYPES].concat().join(", ")
}

fn fits(platform: &Platform) -> bool {
    (platform.os(), platform.architecture()) == (&Os::Linux, &Arch::Amd64)
}

/// Rejects encrypted layers: their bytes would only give the error for a damaged archive. All other faults are found
/// from the bytes.
fn check_layer(descriptor: &Descriptor) -> Result<(), LayoutFault> {
    let media_type = descriptor.media_type().as_ref();
    if !media_type.ends_with(ENCRYPTED_SUFFIX) {
        return Ok(());
    }
    let document = format!("the layer {}", descriptor.digest());
    Err(LayoutFault::MediaType { document, found: media_type.to_owned(), expected: "a layer that is not encrypted" })
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

/// Checks the media type that a document itself contains. A document without a media type is accepted.
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
