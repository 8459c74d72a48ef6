// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The egress link, which carries the guest's TCP connections and DNS queries: one yamux stream each, opened by the
//! guest.
//!
//! ```text
//!   guest agent                                     host
//!       │  dials CID 2, port EGRESS_PORT             │ listens before the machine starts
//!       ├─ Preamble ────────────────────────────────▶│
//!       │◀─────────────────────────────────── Answer ┤
//!       │◀═══════════════ yamux from here on ═══════▶│
//!       │                                            │
//!       ├─ EgressRequest::Connect ──────────────────▶│ decides, dials
//!       │◀──────────────────────────────── Connected ┤ or Refused, then end of stream
//!       │◀─ Flow: Data, Credit … then End or Reset ─▶│ both ways, each at its own pace
//!       │                                            │
//!       ├─ EgressRequest::Resolve ──────────────────▶│ decides, resolves
//!       │◀─────────────────────────────────── Answer ┤ or Refused, then end of stream
//! ```
//!
//! **Ends of a flow.** [`Flow::End`] is the end of one direction, as a FIN is; the other goes on. [`Flow::Reset`] is
//! the end of both. A side is done with a flow when it has both sent and received an end, or has sent or received a
//! reset. Then it finishes its direction of the stream and drops it. These marks are messages because a yamux stream
//! that was reset reads like one that ended cleanly. A stream that ends without a mark was cut, and counts as reset.
//!
//! **Credit.** Each side may send [`FLOW_CREDIT_BYTES`] bytes of data on a flow, and more as the other side grants it
//! with [`Flow::Credit`]. So each side bounds the data that it buffers for a slow reader, and still reads its stream
//! all the time. yamux's own window of 256 KiB per stream is far too much for hundreds of flows. A guest that exceeds
//! its credit loses the link.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// Largest number of open streams on the egress link; a guest that opens more loses the link. An honest guest keeps to
/// [`FLOWS_MAX`], so that closing streams do not count against new ones.
pub const EGRESS_STREAMS_MAX: usize = 512;

/// Largest number of flows and DNS queries at a time. More are refused with [`Refusal::Busy`].
pub const FLOWS_MAX: usize = EGRESS_STREAMS_MAX / 2;

/// First credit of either side on a flow, in bytes: [`FLOWS_MAX`] times this is 2 MiB.
pub const FLOW_CREDIT_BYTES: u32 = 8 * 1024;

/// Largest credit of a side on a flow, in bytes: well above the link's delay times its throughput. A grant that would
/// exceed it violates the protocol.
pub const FLOW_CREDIT_BYTES_MAX: u32 = 256 * 1024;

/// Largest byte slice in a [`Flow::Data`], in bytes: at most the first credit, so that any slice may be sent at once.
pub const FLOW_CHUNK_BYTES_MAX: usize = 8 * 1024;

/// Largest body of a frame on the egress link, in bytes: a chunk or a DNS query with its envelope.
pub const EGRESS_FRAME_BYTES_MAX: usize = FLOW_CHUNK_BYTES_MAX + 64;

/// Longest DNS query, in bytes: the most that resolvers accept over UDP.
pub const DNS_QUERY_BYTES_MAX: usize = 4096;

/// Longest DNS response, in bytes: every resolver accepts this over UDP, so no response is ever truncated.
pub const DNS_ANSWER_BYTES_MAX: usize = 512;

/// The guest's own IPv4 address.
pub const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 77, 2);

/// The guest's own IPv6 address if the host has IPv6: a unique local address.
pub const GUEST_ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 2);

/// The address of the host as seen by the guest. On port 53 the guest's agent serves DNS. Other ports lead to 127.0.0.1
/// of the host, which only a rule of the operator allows.
pub const HOST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 77, 1);

pub const DNS_PORT: u16 = 53;

/// The guest's first message on a stream.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum EgressRequest<'a> {
    /// Dials an address and carries the flow.
    Connect {
        /// The address to dial.
        address: Address,
        /// The port to dial.
        port: u16,
    },
    /// Answers a DNS query.
    Resolve {
        /// One query in the wire format of RFC 1035, without a length in front; at most [`DNS_QUERY_BYTES_MAX`] bytes.
        #[serde(borrow, with = "serde_bytes")]
        message: &'a [u8],
    },
}

/// An IP address, in network order.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Address {
    /// IPv4.
    V4([u8; 4]),
    /// IPv6.
    V6([u8; 16]),
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::V4(address.octets()),
            IpAddr::V6(address) => Self::V6(address.octets()),
        }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        match address {
            Address::V4(octets) => Self::from(octets),
            Address::V6(octets) => Self::from(octets),
        }
    }
}

/// The host's first message on a stream. Unless it is `Connected`, also its last.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum FlowReply<'a> {
    /// The flow begins: [`Flow`] messages follow, both ways.
    Connected,
    /// The flow or the query was refused.
    Refused {
        /// The reason.
        reason: Refusal,
    },
    /// A DNS response; at most [`DNS_ANSWER_BYTES_MAX`] bytes.
    Answer {
        /// One response in the wire format of RFC 1035.
        #[serde(borrow, with = "serde_bytes")]
        message: &'a [u8],
    },
}

/// The reason why a flow or a query was refused.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Refusal {
    /// The policy of the operator or of the environment forbids it.
    Policy,
    /// The host has no route to the address.
    Unreachable,
    /// The other end refused the connection.
    Refused,
    /// The other end did not answer in time.
    TimedOut,
    /// Too many flows are open.
    Busy,
}

/// A message of a flow that has begun, in either direction.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Flow<'a> {
    /// The next bytes: at least one, at most [`FLOW_CHUNK_BYTES_MAX`], and within the credit.
    Data(#[serde(borrow, with = "serde_bytes")] &'a [u8]),
    /// A grant of more credit to the receiver of this message.
    Credit {
        /// At least one; see [`FLOW_CREDIT_BYTES_MAX`].
        bytes: u32,
    },
    /// The end of this side's data. Credit may still follow.
    End,
    /// The connection was reset. Nothing follows.
    Reset,
}
