// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Errors of preparing an image.

use std::{io, path::Path};

use tokio::task::JoinError;
use waggle_shared::{disk_reserve::LowDisk, draft::DraftFault};

use crate::{merge::ImageFault, registry::RegistryFault};

/// An image could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareFault {
    /// The image is invalid, or cannot be read on this machine.
    #[error(transparent)]
    Image(#[from] ImageFault),
    #[error("failed to pull the image {image}")]
    Pull { image: String, source: Box<RegistryFault> },
    #[error("the image {image} has {what} of {bytes} bytes; at most {bytes_max} are allowed")]
    TooLarge { image: String, what: &'static str, bytes: u64, bytes_max: u64 },
    /// An image in a folder of the host that only the operator may name.
    #[error("the image {image} is not in a registry; a client's image must be")]
    NotInRegistry { image: String },
    #[error("failed to use the image cache")]
    Cache {
        #[from]
        source: DraftFault,
    },
    #[error("failed to {operation} {path}")]
    CacheFile { operation: &'static str, path: String, source: io::Error },
    #[error("the disk of {folder} has too little free space for the image")]
    LowDisk { folder: String, source: LowDisk },
    /// The task panicked, or the server is shutting down.
    #[error("the task for {what} ended without a result")]
    Lost { what: String, source: JoinError },
}

impl PrepareFault {
    /// Whether the content of the image, or of a cached blob, can be the cause, rather than the server or a registry.
    #[must_use]
    pub fn is_of_image(&self) -> bool {
        matches!(self, Self::Image(fault) if !fault.is_of_cache())
    }
}

/// Returns a function that converts an I/O error into [`PrepareFault::CacheFile`].
pub(super) fn file_fault(operation: &'static str, path: &Path) -> impl Fn(io::Error) -> PrepareFault {
    let path = path.display().to_string();
    move |source| PrepareFault::CacheFile { operation, path: path.clone(), source }
}
