// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The protocol between the waggle host and its guest agent. This crate does no I/O.
//!
//! ```text
//!   guest agent                                     host
//!       │  dials CID 2, port CALL_PORT               │ listens before the machine starts
//!       ├─ Preamble: magic, version, link ──────────▶│
//!       │◀───────── Answer: magic, version, verdict ─┤
//!       ├─ frame: Hello ────────────────────────────▶│
//!       │◀────────────────────────── frame: Welcome ─┤
//!       │◀═══════════════ yamux from here on ═══════▶│
//!       │                                            │
//!       │  one stream per call, opened by the host   │
//!       │◀──────────────────────────── Request ──────┤
//!       │◀──────────────────────────── Input … ──────┤
//!       ├─ Reply … ─────────────────────────────────▶│
//!       ├─ the last Reply, then end of stream ──────▶│
//! ```
//!
//! A guest with a network dials a second link, the egress link, which [`egress`] describes.
//!
//! **Version rule.** Both sides send [`VERSION`]. Anything but an exact match is refused, with a verdict that both
//! sides can report. Preamble and answer are plain bytes whose layout never changes, so that any two versions
//! understand each other that far. Every message below may change together with the version. `tests/bytes/` freezes the
//! encoding of each shipped version.
//!
//! **Frames.** A `u32` little-endian length, then one postcard message of that many bytes. The length is checked
//! against [`FRAME_BYTES_MAX`] before anything is allocated; trailing bytes after a message are an error. Bulk data
//! travels in byte slices of at most [`CHUNK_BYTES_MAX`].
//!
//! **Ends of a call.** A call ends with its last reply: [`Reply`] marks those that are last. A stream that ends without
//! one was cut. The host cancels with [`Input::Cancel`] and keeps reading until that last reply. A host that vanishes
//! resets the stream, which has the same effect. No message depends on a half-closed stream, because yamux does not
//! reset a stream that is half-closed and then dropped, so its peer would wait without end.

pub mod boot;
pub mod egress;
pub mod fault;
pub mod frame;
pub mod handshake;
pub mod reply;
pub mod request;

pub use fault::{Fault, FaultKind};
pub use handshake::{Hello, Link, Origin, Welcome};
pub use reply::Reply;
pub use request::{Input, Request};

/// The version of everything in this crate. Two sides with different versions refuse each other.
pub const VERSION: u32 = 1;

/// The vsock port of the call link; the guest dials it on CID 2.
pub const CALL_PORT: u32 = 1024;

/// The vsock port of the egress link; the guest dials it on CID 2.
pub const EGRESS_PORT: u32 = 1025;

/// The prefix of the agent's lines on the machine's console.
pub const CONSOLE_PREFIX: &str = "waggle-agent: ";

/// Largest body of a frame, in bytes: a full chunk with its envelope, or a request with its environment.
pub const FRAME_BYTES_MAX: usize = 128 * 1024;

/// Largest byte slice in a message, in bytes: large enough that the envelope costs nothing, small enough that calls
/// share a link fairly.
pub const CHUNK_BYTES_MAX: usize = 64 * 1024;

/// Largest number of calls that the host keeps open on one link at a time.
pub const CALLS_MAX: usize = 32;

/// Longest text that either side accepts in a hello or a fault, in bytes.
pub const TEXT_BYTES_MAX: usize = 4096;

/// Largest number of programs in a hello; waggle looks for about a dozen.
pub const PROGRAMS_MAX: usize = 64;

/// Most bytes of names in one listing; a longer listing is truncated. Ten thousand names of the kernel's maximum length
/// fit.
pub const LISTING_BYTES_MAX: usize = 3 * 1024 * 1024;
