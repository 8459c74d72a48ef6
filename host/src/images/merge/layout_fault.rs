// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Errors of reading an OCI layout.

use std::io;

use super::{
    blob::BlobFault,
    limits::{DOCUMENT_BYTES_MAX, INDEX_DEPTH_MAX, INDEXES_READ_MAX, LAYERS_MAX},
    tar_stream::TarFault,
};

/// A layout cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LayoutFault {
    /// The folder or file cannot be opened.
    #[error("failed to open {path}")]
    Open { path: String, source: io::Error },
    /// A file that every layout has is missing.
    #[error("{path} is not an OCI layout: the file {missing:?} is missing")]
    NotALayout { path: String, missing: &'static str },
    /// The tar file is damaged.
    #[error("failed to read {path} as a tar file")]
    Archive { path: String, source: TarFault },
    /// The tar file has too many files.
    #[error("{path} has too many files; at most {max} are allowed")]
    ArchiveMembers { path: String, max: usize },
    /// The version of the layout is unknown.
    #[error("the layout's version is {found:?}; 1.0.0 is supported")]
    Version { found: String },
    /// A JSON document is too large to be read into memory.
    #[error("{document} has {bytes} bytes; at most {DOCUMENT_BYTES_MAX} are allowed")]
    DocumentTooLarge { document: String, bytes: u64 },
    /// A JSON document is invalid.
    #[error("{document} is not valid")]
    Document { document: String, source: serde_json::Error },
    /// A media type is unsupported, or not the expected one.
    #[error("{document} has the media type {found:?}; must be {expected}")]
    MediaType { document: String, found: String, expected: &'static str },
    /// Indexes are nested too deep.
    #[error("its indexes are nested more than {INDEX_DEPTH_MAX} deep")]
    TooDeep,
    /// There are too many indexes side by side.
    #[error("more than {INDEXES_READ_MAX} indexes would have to be read to find the image")]
    TooManyIndexes,
    /// No image has the tag.
    #[error("tag {tag:?} not found in it; {}", list(tags))]
    TagNotFound { tag: String, tags: Vec<String> },
    /// The layout has no images.
    #[error("it contains no image")]
    Empty,
    /// The layout has several images, and the reference has no tag.
    #[error("it has several images, none of them tagged latest: add :TAG; {}", list(tags))]
    Ambiguous { tags: Vec<String> },
    /// The image is for other platforms.
    #[error("the image is for {}; must be for linux/amd64", found.join(", "))]
    Platform { found: Vec<String> },
    /// The image has too many layers.
    #[error("the image has {layers} layers; at most {LAYERS_MAX} are allowed")]
    TooManyLayers { layers: usize },
    /// The manifest and the configuration differ in the number of layers.
    #[error("the manifest has {layers} layers and the configuration {diff_ids}")]
    LayerCount { layers: usize, diff_ids: usize },
    /// A blob is missing, or does not match its digest.
    #[error("failed to read {document}")]
    Blob { document: String, source: BlobFault },
}

fn list(tags: &[String]) -> String {
    if tags.is_empty() { "its images have no tags".to_owned() } else { format!("its tags are: {}", tags.join(", ")) }
}
