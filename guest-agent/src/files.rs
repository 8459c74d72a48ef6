// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! File calls. A worker process serves each of them, and becomes the sandbox user before it reads a byte of the call.
//!
//! ```text
//!   host ── call stream ── agent ── socket pair ── worker (waggle-agent files ROOT)
//! ```
//!
//! The worker speaks the protocol on its socket: the agent sends it the request and then moves bytes both ways without
//! parsing them. A thread that merely switched its user would still share the agent's memory. Where the agent runs as
//! its caller, the same code runs on a thread, because there is no other user to become.

mod list;
mod path;
mod read;
mod relay;
mod wire;
mod worker;
mod worker_program;
mod write;

pub(crate) use self::relay::Workers;
pub use self::worker::{WORKER, serve_as_sandbox};
