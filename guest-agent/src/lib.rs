// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The guest agent: serves the host's calls over one byte stream.
//!
//! [`serve`] accepts any stream to the host, so the host's behaviour tests can run the same code on an in-memory pipe.
//! The code that needs a machine (PID 1, mounts, the ports, the `sandbox` user) is used only by the modules [`boot`]
//! and [`reaper`], and with [`Mode::Sandbox`].
//!
//! The agent trusts the host, but not the processes in the guest.

pub mod boot;
mod calls;
mod cgroups;
mod command_settings;
pub mod confine;
pub mod console;
pub mod dial;
mod exec;
mod fault;
pub mod files;
pub mod guest;
mod host_links;
mod identity;
mod mounts;
mod mutex;
mod network;
mod npm;
mod platform;
mod ports;
mod probe;
mod python_cache;
mod random;
pub mod reaper;
pub mod sandbox;
mod sandbox_user;
mod serve;
mod step;
mod streams;
mod sys;
mod temporary;
mod warm_up;

pub use guest::{Guest, Mode};
pub use serve::{ServeFault, serve};

/// musl's own allocator returns each large buffer to the kernel at once, which halves the speed of file transfers.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;
