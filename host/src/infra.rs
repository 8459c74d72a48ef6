// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Adapters: what the domain's ports are made of on a real host.

pub mod agent;
pub mod agent_binary;
pub mod ca_bundle;
pub(crate) mod control_group;
pub mod disks;
mod draft;
pub mod egress;
pub mod firmware_binary;
pub mod image_store;
pub mod images;
pub(crate) mod printable;
mod private_folder;
pub mod registry;
pub mod token_file;
pub mod vmm;
