// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! File calls. A separate worker process serves each call. The worker becomes the sandbox user before it reads a byte
//! of the call.
//!
//! ```text
//!   host ── call stream ── agent ── socket pair ── worker (waggle-agent files ROOT GROUPS)
//! ```
//!
//! The worker speaks the protocol on its socket. The agent sends the request to the worker, and then copies bytes in
//! both directions without parsing them. A worker is a process because a thread that switches its user would still
//! share the agent's memory. With [`Mode::Caller`](crate::Mode::Caller), the user stays the same, so the same code runs
//! on a thread.

mod list;
mod path;
mod read;
mod relay;
mod selection;
mod wire;
mod worker;
mod worker_program;
mod write;

pub(crate) use self::relay::Workers;
pub use self::worker::{WORKER, serve_as_sandbox};
