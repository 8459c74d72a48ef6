// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Limits of each kind of link. The limits bound the memory that a peer can make this side use.

use waggle_protocol::{
    CALLS_MAX,
    egress::{EGRESS_STREAMS_MAX, FLOW_CREDIT_BYTES, FLOWS_MAX},
    handshake::Link,
};

/// The receive window of a stream, in bytes, as fixed by the specification of yamux.
const STREAM_WINDOW_BYTES: usize = 256 * 1024;

/// Space for control frames in a pump, in bytes.
const CONTROL_BYTES: usize = 1024 * 1024;

/// The limits of one kind of link.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkLimits {
    /// Maximum number of open streams in yamux. A peer that opens more loses the whole link.
    pub(crate) streams_max: usize,
    /// Maximum number of streams waiting to be opened or accepted. When the queue is full, local openers wait, and
    /// streams that the peer opens are reset.
    pub(crate) queue: usize,
    /// Maximum number of bytes that the opening side's pump stores while a write is blocked.
    pub(crate) opener_pump_bytes_max: usize,
    /// The same limit for the accepting side.
    pub(crate) acceptor_pump_bytes_max: usize,
    /// Memory limit of the opening side's unread data, in bytes. A peer that exceeds the limit loses the whole link. A
    /// guest trusts its host and sets no such limit.
    pub(crate) opener_unread_bytes_max: u64,
    /// The same limit for the accepting side.
    pub(crate) acceptor_unread_bytes_max: u64,
}

/// Limits of the call link, on which the host opens streams. The link allows two streams per call, so that streams that
/// are still closing do not block new ones. To prevent a deadlock, the pump of one side must be able to store
/// everything that an honest peer can have in flight. The guest's pump has that size. The host's pump is small, because
/// the host has many links and must save memory.
const CALL: LinkLimits = LinkLimits {
    streams_max: 2 * CALLS_MAX,
    queue: CALLS_MAX,
    opener_pump_bytes_max: CONTROL_BYTES,
    acceptor_pump_bytes_max: CALLS_MAX * STREAM_WINDOW_BYTES + CONTROL_BYTES,
    // The windows of all calls add up to 8 MiB.
    opener_unread_bytes_max: 12 * 1024 * 1024,
    acceptor_unread_bytes_max: u64::MAX,
};

/// Limits of the egress link, on which the guest opens streams. Again the host's pump is small. The guest's pump can
/// store all credit that the guest grants to the host: the initial credit of each flow plus [`EGRESS_POOL_BYTES`].
const EGRESS: LinkLimits = LinkLimits {
    streams_max: EGRESS_STREAMS_MAX,
    queue: EGRESS_STREAMS_MAX,
    opener_pump_bytes_max: FLOWS_MAX * FLOW_CREDIT_BYTES as usize + EGRESS_POOL_BYTES + CONTROL_BYTES,
    acceptor_pump_bytes_max: CONTROL_BYTES,
    opener_unread_bytes_max: u64::MAX,
    // The host grants the guest at most 4 MiB.
    acceptor_unread_bytes_max: 8 * 1024 * 1024,
};

/// Maximum credit in bytes that one side grants to all flows of an egress link together, in addition to their initial
/// credit. The maximum bounds the data that this side buffers.
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
        // The limit equals the sum of the initial windows, so the windows never grow.
        config.set_max_connection_receive_window(Some(self.streams_max * STREAM_WINDOW_BYTES));
        config
    }
}
