// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Tests of the image store. Images come from generated layouts and a test registry. The tools of erofs-utils read the
//! EROFS files.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on should stop"
)]

mod broken;
mod credentials;
mod entries;
mod hard_links;
mod layout;
mod merging;
mod pulling;
mod registry;
mod shelves;
mod store;
