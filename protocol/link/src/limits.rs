// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Limits of each kind of link. They bound the memory that a peer can make this side use.

use waggle_protocol::{
    CALLS_MAX,
    egress::{EGRESS_STREAMS_MAX, FLOW_CREDIT_BYTES, FLOWS_MAX},
    handshake::Link,
};

/// yamux's receive window of a stream, in bytes, as fixed by its specification.
const STREAM_WINDOW_BYTES: usize = 256 * 1024;

/// Space for control frames in a pump, in bytes.
const CONTROL_BYTES: usize = 1024 * 1024;

/// The limits of one kind of link.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkLimits {
    /// Open streams in yamux. A peer that exceeds this loses the whole link.
    pub(crate) streams_max: usize,
    /// Streams waiting to be opened or accepted. When the queue is full, local openers wait, and streams that the peer
    /// opens are reset.
    pub(crate) queue: usize,
    /// Bytes that the opening side's pump stores while a write is blocked.
    pub(crate) opener_pump_bytes_max: usize,
    /// The same for the accepting side.
    pub(crate) acceptor_pump_bytes_max: usize,
    /// Memory for the opening side's unread data, in bytes. A peer that exceeds this loses the whole link. A guest
    /// trusts its host and sets no such limit.
    pub(crate) opener_unread_bytes_max: u64,
    /// The same for the accepting side.
    pub(crate) acceptor_unread_bytes_max: u64,
}

/// The call link, which the host opens streams on. It allows twice as many streams as calls, so that closing streams do
/// not count against new ones. To prevent a deadlock it is enough that one end's pump can store all that an honest peer
/// can have in flight. The guest's pump does, because the host has many links and must save memory.
const CALL: LinkLimits = LinkLimits {
    streams_max: 2 * CALLS_MAX,
    queue: CALLS_MAX,
    opener_pump_bytes_max: CONTROL_BYTES,
    acceptor_pump_bytes_max: CALLS_MAX * STREAM_WINDOW_BYTES + CONTROL_BYTES,
    // The windows of all calls add up to 8 MiB.
    opener_unread_bytes_max: 12 * 1024 * 1024,
    acceptor_unread_bytes_max: u64::MAX,
};

/// The egress link, which the guest opens streams on. The host's pump is the small one again. The host can have in
/// flight what the guest has granted: the first credit of each flow plus [`EGRESS_POOL_BYTES`].
const EGRESS: LinkLimits = LinkLimits {
    streams_max: EGRESS_STREAMS_MAX,
    queue: EGRESS_STREAMS_MAX,
    opener_pump_bytes_max: FLOWS_MAX * FLOW_CREDIT_BYTES as usize + EGRESS_POOL_BYTES + CONTROL_BYTES,
    acceptor_pump_bytes_max: CONTROL_BYTES,
    opener_unread_bytes_max: u64::MAX,
    // The host grants the guest at most 4 MiB.
    acceptor_unread_bytes_max: 8 * 1024 * 1024,
};

/// Credit that one side grants to all flows of an egress link together beyond their first credit, in bytes. It bounds
/// the data that this side buffers.
pub const EGRESS_POOL_BYTES: usize = 2 * 1024 * 1024;

impl LinkLimits {
    pub(crate) fn of(link: Link) -> Self {
        match link {
            Link::Call => CALL,
            Link::Egress => EGRESS,
        }
    }

    pub(crate) fn config(self) -> yamux::Config {
        let mut config = yamux::Config::default();
        config.set_max_num_streams(self.streams_max);
        // This equals the sum of the initial windows, so they never grow.
        config.set_max_connection_receive_window(Some(self.streams_max * STREAM_WINDOW_BYTES));
        config
    }
}
