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
    #[error("failed to open {path}")]
    Open { path: String, source: io::Error },
    #[error("{path} is not an OCI layout: the file {missing:?} is missing")]
    NotALayout { path: String, missing: &'static str },
    #[error("failed to read {path} as a tar file")]
    Archive { path: String, source: TarFault },
    #[error("{path} has too many files; at most {max} are allowed")]
    ArchiveMembers { path: String, max: usize },
    #[error("the layout's version is {found:?}; must be 1.x")]
    Version { found: String },
    #[error("{document} has {bytes} bytes; at most {DOCUMENT_BYTES_MAX} are allowed")]
    DocumentTooLarge { document: String, bytes: u64 },
    #[error("{document} is not valid")]
    Document { document: String, source: serde_json::Error },
    #[error("{document} has the media type {found:?}; must be {expected}")]
    MediaType { document: String, found: String, expected: &'static str },
    #[error("the image's indexes are nested more than {INDEX_DEPTH_MAX} levels deep")]
    TooDeep,
    #[error("more than {INDEXES_READ_MAX} indexes would have to be read to find the image")]
    TooManyIndexes,
    #[error("tag {tag:?} not found in the layout; {}", list(tags))]
    TagNotFound { tag: String, tags: Vec<String> },
    #[error("the index contains no image")]
    Empty,
    #[error("the layout has several images, and none is tagged latest; add :TAG to choose one; {}", list(tags))]
    Ambiguous { tags: Vec<String> },
    #[error("the image is for {}; must be for linux/amd64", found.join(", "))]
    Platform { found: Vec<String> },
    #[error("the image has {layers} layers; at most {LAYERS_MAX} are allowed")]
    TooManyLayers { layers: usize },
    #[error("the manifest has {layers} layers and the configuration {diff_ids}; the numbers must be equal")]
    LayerCount { layers: usize, diff_ids: usize },
    #[error("failed to read {document}")]
    Blob { document: String, source: BlobFault },
}

fn list(tags: &[String]) -> String {
    if tags.is_empty() { "its images have no tags".to_owned() } else { format!("existing tags: {}", tags.join(", ")) }
}
