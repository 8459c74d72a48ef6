// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Environments, their rules, and the traits through which machines are started and called.
//!
//! Nothing here does I/O or reads a clock: time is an argument. Only the traits in [`machine`] are async.

pub mod allowed_images;
pub mod call_fault;
pub mod capabilities;
pub mod command;
pub mod defences;
pub mod egress;
pub mod environment;
pub mod environment_id;
pub mod file;
pub mod guest_path;
pub mod lifecycle;
pub mod live_output;
pub mod machine;
pub mod machine_size;
pub mod origin;
pub mod output;
pub mod package_name;
pub mod principal;
pub mod repository;
pub mod runtime;
pub mod saved;
pub mod shared_limit;
pub mod stage;
pub mod start_reason;
pub mod tokens;
pub mod utf8;
pub mod variables;
