// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The guest agent: serves the host's calls over one byte stream.
//!
//! [`serve`] takes any stream, so that the host's behaviour tests run this very code on an in-memory pipe. What only a
//! machine has (PID 1, mounts, the vsock device, the `sandbox` user) is in the binary's modules [`boot`] and [`reaper`]
//! and behind [`Work`].
//!
//! The agent trusts the host. It does not trust what runs in the guest.

pub mod boot;
mod calls;
mod cgroups;
mod clock;
pub mod confine;
pub mod console;
pub mod dial;
mod egress;
mod exec;
mod fault;
pub mod files;
pub mod guest;
mod mutex;
mod probe;
pub mod reaper;
pub mod room;
mod serve;
mod sys;
mod temporary;

pub use guest::{Guest, Work};
pub use serve::{ServeFault, serve};

/// musl's own allocator returns each large buffer to the kernel and asks for it again, which halves the speed of file
/// transfers.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;
