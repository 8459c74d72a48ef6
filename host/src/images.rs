// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Turns image references into read-only EROFS files, from which machines start.
//!
//! ```text
//!  cache ──▶ registry   downloads manifests, configurations and layers
//!    └─────▶ merge      merges layers into one EROFS file
//! ```

pub mod cache;
pub mod merge;
pub mod progress;
pub mod registry;
