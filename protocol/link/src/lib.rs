// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The multiplexed link under the waggle protocol, over any byte stream: handshake, yamux, framed messages.
//!
//! ```text
//!   FrameReader / FrameWriter     messages, cancel-safe
//!   yamux::Stream                 one a call, with its own window
//!   Driver                        the one task that polls the connection
//!   Rules                         ends a link whose peer breaks them
//!   Pump                          keeps reading while a write is blocked
//!   Batch                         few large reads and writes for many small ones
//!   vsock, Unix socket, pipe
//! ```
//!
//! Both ends use it, so that neither has a copy of it. It knows nothing about what the messages mean.

mod batch;
mod driver;
mod framed;
mod greet;
mod pump;
mod rules;
mod shape;

pub use driver::{Acceptor, LinkFault, Opener, Stream};
pub use framed::{FrameReader, FrameWriter, ReceiveFault, SendFault};
pub use greet::{GreetFault, answer_preamble, present};
pub use pump::Pump;
pub use rules::Breach;
pub use shape::EGRESS_POOL_BYTES;
