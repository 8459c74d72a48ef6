// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The modules that the host's crates share. A module belongs here only if several of these crates use it.

pub mod address;
pub mod causes;
pub mod disk_reserve;
pub mod draft;
pub mod host_addresses;
pub mod mutex;
pub mod printable;
pub mod private_folder;
