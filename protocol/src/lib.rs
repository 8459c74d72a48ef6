// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The protocol between the waggle host and its guest agent. This crate does no I/O.
//!
//! ```text
//!   guest agent                                     host
//!       │  dials the call link                       │ listens before the machine starts
//!       │◀═══ a generation begins (generation) ═════▶│
//!       ├─ Preamble: magic, version, link ──────────▶│
//!       │◀───────── Answer: magic, version, verdict ─┤
//!       ├─ frame: Hello ────────────────────────────▶│
//!       │◀────────────────────────── frame: Welcome ─┤
//!       │  becomes the machine of the welcome        │
//!       ├─ frame: Ready ────────────────────────────▶│
//!       │◀═════════════ streams from here on ═══════▶│
//!       │                                            │
//!       │  one stream per call, opened by the host   │
//!       │◀──────────────────────────── Request ──────┤
//!       │◀──────────────────────────── Input … ──────┤
//!       ├─ Reply … ─────────────────────────────────▶│
//!       ├─ the last Reply, then end of stream ──────▶│
//! ```
//!
//! Until the welcome, nothing that a user can see is specific to one machine: the memory of a machine that waits for
//! its welcome may be copied, and each copy becomes another machine.
//!
//! With vsock, a link is a connection to [`CALL_PORT`] or [`EGRESS_PORT`] of CID 2; with virtio-serial, a port with the
//! name [`boot::CALL_PORT_NAME`] or [`boot::EGRESS_PORT_NAME`]. [`generation`] describes how a link begins on either.
//!
//! A guest with a network dials a second link, the egress link, which [`egress`] describes.
//!
//! **Version rule.** Both sides send [`VERSION`]. Only an exact match is accepted; otherwise both sides can report the
//! two versions. Preamble and answer are plain bytes. Their layout, and that of [`generation`], never change, so that
//! any two versions from 3 on can exchange them. All other messages may change together with the version.
//! `tests/bytes/` freezes the encoding of each shipped version.
//!
//! **Frames.** A frame is a `u32` little-endian length, then one postcard message of that length. The length is checked
//! against [`FRAME_BYTES_MAX`] before anything is allocated; trailing bytes after a message are an error. Bulk data
//! travels in byte slices of at most [`CHUNK_BYTES_MAX`].
//!
//! **Ends of a call.** A call ends with its last reply; the documentation of [`Reply`] marks the variants that are
//! last. A stream that ends without a last reply was cut off. To cancel, the host sends [`Input::Cancel`] and keeps
//! reading until the last reply. If the host drops the stream, which resets it, this also
//! cancels the call.

pub mod boot;
pub mod egress;
pub mod fault;
pub mod frame;
pub mod generation;
pub mod handshake;
pub mod name;
pub mod reply;
pub mod request;

pub use fault::{Fault, FaultKind};
pub use handshake::{Hello, Link, Origin, Ready, Seed, Welcome};
pub use reply::Reply;
pub use request::{Input, Request};

/// The version of the protocol. Two sides with different versions refuse each other.
pub const VERSION: u32 = 4;

/// The vsock port of the call link. The guest dials this port on CID 2.
pub const CALL_PORT: u32 = 1024;

/// The vsock port of the egress link. The guest dials this port on CID 2.
pub const EGRESS_PORT: u32 = 1025;

/// The prefix of the agent's lines on the machine's console.
pub const CONSOLE_PREFIX: &str = "waggle-agent: ";

/// Maximum length of a frame's body in bytes: enough for a full chunk and the fields around it, or for a request with
/// its environment variables.
pub const FRAME_BYTES_MAX: usize = 128 * 1024;

/// Maximum length of a byte slice in a message in bytes. The length is large enough to make the overhead of a frame
/// negligible, and small enough for calls to share a link fairly.
pub const CHUNK_BYTES_MAX: usize = 64 * 1024;

/// Maximum number of calls that the host keeps open on one link at a time.
pub const CALLS_MAX: usize = 32;

/// Maximum length of each text in a hello or a fault in bytes.
pub const TEXT_BYTES_MAX: usize = 4096;

/// Maximum number of entries of [`reply::Exited::refused`], one for each kind of system call.
pub const REFUSED_MAX: usize = 16;

/// Maximum number of programs in a hello; the agent looks for about ten.
pub const PROGRAMS_MAX: usize = 64;

/// Maximum total length of the names in one listing in bytes; another listing can continue it. More names do not fit
/// into the result that a client gets.
pub const LISTING_BYTES_MAX: usize = 512 * 1024;

/// Maximum length of the name of an entry in bytes, in a recursive listing a path: the kernel's own limit.
pub const NAME_BYTES_MAX: usize = 4096;
