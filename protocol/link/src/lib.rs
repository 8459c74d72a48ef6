// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The multiplexed link under the waggle protocol, over any byte stream: handshake, yamux, framed messages.
//!
//! ```text
//!   carry                         a TCP connection as a flow of the egress link
//!   FrameReader / FrameWriter     messages, cancel-safe
//!   Stream                        yamux's: one a call or a flow, with its own window; Backlog and Unread bound all
//!   Driver                        the one task that polls the connection
//!   Rules                         ends a link whose peer breaks them
//!   Pump                          keeps reading while a write is blocked
//!   Batch                         few large reads and writes for many small ones
//!   vsock, Unix socket, pipe
//! ```
//!
//! Both ends use it, so that neither has a copy of it. Of the messages it knows those of a flow that has begun, which
//! are the same both ways, and no others.

mod backlog;
mod batch;
mod driver;
mod flow;
mod framed;
mod greet;
mod pump;
mod rules;
mod shape;
mod stream;
mod unread;

pub use driver::{Acceptor, LinkFault, Opener};
pub use flow::{Ending, FlowBreach, GrantPool, carry};
pub use framed::{FrameReader, FrameWriter, ReceiveFault, SendFault};
pub use greet::{GreetFault, answer_preamble, present};
pub use pump::Pump;
pub use rules::Breach;
pub use shape::EGRESS_POOL_BYTES;
pub use stream::Stream;
