// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Limits of each kind of link. The limits bound the memory that a peer can make this side use.

use waggle_protocol::{
    CALLS_MAX, CHUNK_BYTES_MAX,
    egress::{EGRESS_STREAMS_MAX, FLOW_CREDIT_BYTES, FLOW_CREDIT_BYTES_MAX},
    generation::RECORD_BODY_BYTES_MAX,
    handshake::Link,
};

/// Maximum length of a write in bytes. Frames are gathered up to this length, which fills a record, because each record
/// is a packet with an interrupt on both sides.
pub(crate) const WRITE_BYTES_MAX: usize = RECORD_BODY_BYTES_MAX;

/// Size of the buffer for reads of records, in bytes.
pub(crate) const READ_BYTES_MAX: usize = RECORD_BODY_BYTES_MAX;

/// Maximum credit in bytes that one side grants to all flows of an egress link together, in addition to their initial
/// credit. The maximum bounds the data that this side buffers.
pub const EGRESS_POOL_BYTES: usize = 2 * 1024 * 1024;

/// The limits of one kind of link, which are the same on both sides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkLimits {
    /// Maximum number of streams, including streams that one side has not closed yet. Further openers wait; a peer that
    /// opens more loses the link.
    pub(crate) streams_max: usize,
    /// Initial credit of each side on a stream in bytes.
    pub(crate) credit: u32,
    /// Maximum unused credit of a side on a stream in bytes.
    pub(crate) credit_max: u32,
    /// Credit in bytes that the streams can borrow in addition to their initial credit.
    pub(crate) pool: usize,
    /// Maximum number of bytes that a stream queues for sending. The bytes are within the peer's credit.
    pub(crate) queue_max: usize,
}

/// Limits of the call link, on which the host opens streams. The link allows two streams per call, so that streams that
/// are still closing do not block new ones. The credit of all calls adds up to 8 MiB;
/// data for streams that are closing is discarded.
const CALL: LinkLimits = LinkLimits {
    streams_max: 2 * CALLS_MAX,
    credit: 256 * 1024,
    credit_max: 256 * 1024,
    pool: 0,
    queue_max: CHUNK_BYTES_MAX,
};

/// Limits of the egress link, on which the guest opens streams. The initial credit of all streams and the pool add up
/// to 6 MiB. The buffers may use twice that, because a flow writes one buffer while the next one fills. The queues of
/// all flows add up to 8 MiB.
const EGRESS: LinkLimits = LinkLimits {
    streams_max: EGRESS_STREAMS_MAX,
    credit: FLOW_CREDIT_BYTES,
    credit_max: FLOW_CREDIT_BYTES_MAX,
    pool: EGRESS_POOL_BYTES,
    queue_max: 32 * 1024,
};

impl LinkLimits {
    pub(crate) fn of(link: Link) -> Self {
        match link {
            Link::Call => CALL,
            Link::Egress => EGRESS,
        }
    }
}
