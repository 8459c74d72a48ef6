// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Turns image references into read-only EROFS files, from which machines start.
//!
//! ```text
//!  reference ──▶ cache ──▶ registry   downloads manifests, configurations and layers
//!  progress  ◀──   └─────▶ merge      merges layers into one EROFS file
//! ```
//!
//! The crate knows nothing of machines and of the server: it takes an image's reference, and returns the file together
//! with a lease, which keeps the file while a machine uses it. Read [`cache`] first.
//!
//! ```no_run
//! use waggle_images::{cache::ImageStore, reference::ImageRef};
//!
//! async fn prepare() -> Result<(), Box<dyn std::error::Error>> {
//!     let store = ImageStore::open("/var/cache/images")?;
//!     let image: ImageRef = "python:3-slim".parse()?;
//!     let prepared = store.prepare(&image).await?;
//!     println!("{}", prepared.erofs.display());
//!     Ok(())
//! }
//! ```

pub mod cache;
pub mod merge;
pub mod progress;
pub mod reference;
pub mod registry;
