// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Images: from a reference to one read-only EROFS file that machines start from.
//!
//! ```text
//!  cache ──▶ registry   manifests, configurations and layers, as a registry sends them
//!    └─────▶ merge      layers to one EROFS file
//! ```

pub mod cache;
pub mod merge;
pub mod registry;
