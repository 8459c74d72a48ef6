// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What waggle is about: environments, their rules and the ports to the outside.
//!
//! There is no I/O and no clock in here, and async only in the ports; time is an argument.

pub mod defences;
pub mod egress;
pub mod environment;
pub mod guest_path;
pub mod image;
pub mod lifecycle;
pub mod live_output;
pub mod output;
pub mod package_name;
pub mod ports;
pub mod principal;
pub mod repository;
pub mod runtime;
pub mod tokens;
pub mod utf8;
pub mod variables;
