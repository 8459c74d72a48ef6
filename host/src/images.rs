// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Images: from a reference to a read-only EROFS file that machines start from.
//!
//! ```text
//!  cache ──▶ registry   downloads manifests, configurations and layers
//!    └─────▶ merge      merges layers into one EROFS file
//! ```

pub mod cache;
pub mod merge;
pub mod registry;
