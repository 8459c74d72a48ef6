// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! How much of everything a link may have. What a peer can make this side keep follows from it.

use waggle_protocol::{
    CALLS_MAX,
    egress::{EGRESS_STREAMS_MAX, FLOW_CREDIT_BYTES, FLOWS_MAX},
    handshake::Link,
};

/// yamux's receive window of a stream, in bytes; its specification fixes it.
const STREAM_WINDOW_BYTES: usize = 256 * 1024;

/// Room for control frames in a pump, in bytes.
const CONTROL_BYTES: usize = 1024 * 1024;

/// The limits of one kind of link.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Streams that yamux keeps at a time. A peer that exceeds it loses the whole link.
    pub(crate) streams_max: usize,
    /// Streams that wait to be opened or taken; above it openers wait, and what is opened is reset.
    pub(crate) queue: usize,
    /// What the opening side's pump takes in while a write is blocked, in bytes.
    pub(crate) opener_pump_bytes_max: usize,
    /// The same for the accepting side.
    pub(crate) acceptor_pump_bytes_max: usize,
    /// What the opening side keeps for data that was not read, in bytes; a peer that exceeds it loses the whole link. A
    /// guest trusts its host, and has no such limit.
    pub(crate) opener_unread_bytes_max: u64,
    /// The same for the accepting side.
    pub(crate) acceptor_unread_bytes_max: u64,
}

/// Twice the calls, so that closing ones don't count against new ones. One end's pump takes in all that a peer within
/// the rules can have in flight, which keeps both moving; so the host, for which each link's memory counts, can do with
/// little.
const CALL: Shape = Shape {
    streams_max: 2 * CALLS_MAX,
    queue: CALLS_MAX,
    opener_pump_bytes_max: CONTROL_BYTES,
    acceptor_pump_bytes_max: CALLS_MAX * STREAM_WINDOW_BYTES + CONTROL_BYTES,
    // The windows of all calls are 8 MiB.
    opener_unread_bytes_max: 12 * 1024 * 1024,
    acceptor_unread_bytes_max: u64::MAX,
};

/// The host accepts here, so its pump is the small one again. What it can have in flight is what the guest has granted:
/// the first credit of each flow, and [`EGRESS_POOL_BYTES`] on top.
const EGRESS: Shape = Shape {
    streams_max: EGRESS_STREAMS_MAX,
    queue: EGRESS_STREAMS_MAX,
    opener_pump_bytes_max: FLOWS_MAX * FLOW_CREDIT_BYTES as usize + EGRESS_POOL_BYTES + CONTROL_BYTES,
    acceptor_pump_bytes_max: CONTROL_BYTES,
    opener_unread_bytes_max: u64::MAX,
    // All that the guest is granted is 4 MiB.
    acceptor_unread_bytes_max: 8 * 1024 * 1024,
};

/// What one side grants to all flows of an egress link together beyond their first credit, in bytes. It bounds what
/// that side can come to hold.
pub const EGRESS_POOL_BYTES: usize = 2 * 1024 * 1024;

impl Shape {
    pub(crate) fn of(link: Link) -> Self {
        match link {
            Link::Call => CALL,
            Link::Egress => EGRESS,
        }
    }

    pub(crate) fn config(self) -> yamux::Config {
        let mut config = yamux::Config::default();
        config.set_max_num_streams(self.streams_max);
        // It equals the streams' windows, so they never grow.
        config.set_max_connection_receive_window(Some(self.streams_max * STREAM_WINDOW_BYTES));
        config
    }
}
