// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Why an image could not be prepared.

use std::io;

use tokio::task::JoinError;

use crate::{
    files::draft::DraftFault,
    images::{merge::ImageFault, registry::RegistryFault},
};

/// An image could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareFault {
    /// The image itself, or where it lies on this machine.
    #[error(transparent)]
    Image(#[from] ImageFault),
    /// It could not be pulled.
    #[error("failed to pull the image {image}")]
    Pull {
        /// The reference.
        image: String,
        /// Why.
        source: Box<RegistryFault>,
    },
    /// Too large to pull.
    #[error("the image {image} has {what} of {bytes} bytes, and at most {bytes_max} are allowed")]
    TooLarge {
        /// The reference.
        image: String,
        /// What is too large.
        what: &'static str,
        /// Its bytes.
        bytes: u64,
        /// Bytes there may be.
        bytes_max: u64,
    },
    /// The cache folder.
    #[error("failed to use the image cache")]
    Cache {
        /// Why.
        #[from]
        source: DraftFault,
    },
    /// A file in the cache folder.
    #[error("failed to {operation} {path}")]
    CacheFile {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The work ended without a result: it panicked, or the server is shutting down.
    #[error("the work on {what} ended without a result")]
    Lost {
        /// What it was about.
        what: String,
        /// How, if that is known.
        source: Option<JoinError>,
    },
}
