// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What the egress link carries: the guest's TCP connections and its questions to the name service, one yamux stream
//! each, opened by the guest.
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
//!       ├─ EgressRequest::Resolve ──────────────────▶│ decides, asks the system
//!       │◀─────────────────────────────────── Answer ┤ or Refused, then end of stream
//! ```
//!
//! **Ends of a flow.** [`Flow::End`] is the end of one direction, as a FIN is; the other goes on. [`Flow::Reset`] is
//! the end of both. A side is done with a flow when it has sent and received an end, or has sent or received a reset;
//! then it finishes its direction of the stream and drops it. These marks are messages because a yamux stream that was
//! reset reads as one that came to a clean end: a stream that ends without a mark was cut, and counts as reset.
//!
//! **Credit.** Each side may send [`FLOW_CREDIT_BYTES`] bytes of data on a flow, and as many more as the other side
//! grants with [`Flow::Credit`]. So either side bounds what it holds of a flow whose reader is slow, and still reads
//! its stream all the time: yamux's own window of 256 KiB a stream is far too much for hundreds of flows. A guest that
//! sends beyond its credit loses the link.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// Streams that the egress link keeps at a time; a guest that opens more loses the link. It keeps to
/// [`FLOWS_MAX`], so that closing ones don't count against new ones.
pub const EGRESS_STREAMS_MAX: usize = 512;

/// Flows and questions at a time. One above it is refused as [`Refusal::Busy`].
pub const FLOWS_MAX: usize = EGRESS_STREAMS_MAX / 2;

/// Data that either side may send on a flow before it is granted more, in bytes: [`FLOWS_MAX`] times this is 2 MiB.
pub const FLOW_CREDIT_BYTES: u32 = 8 * 1024;

/// The most credit that a side may have on a flow, in bytes: the link's delay times its throughput, and room to spare.
/// A grant that would lead above it breaks the protocol.
pub const FLOW_CREDIT_BYTES_MAX: u32 = 256 * 1024;

/// Largest byte slice in a [`Flow::Data`], in bytes: never above the first credit, so that any may be sent at once.
pub const FLOW_CHUNK_BYTES_MAX: usize = 8 * 1024;

/// Largest body of a frame on the egress link, in bytes: a chunk or a question with its envelope.
pub const EGRESS_FRAME_BYTES_MAX: usize = FLOW_CHUNK_BYTES_MAX + 64;

/// Longest question to the name service, in bytes: what resolvers take over UDP at the most.
pub const DNS_QUERY_BYTES_MAX: usize = 4096;

/// Longest answer of the name service, in bytes: what every resolver takes over UDP, so none is ever truncated.
pub const DNS_ANSWER_BYTES_MAX: usize = 512;

/// The guest's own address, which its connections come from.
pub const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 77, 2);

/// The guest's own address where the host has IPv6: a unique local one.
pub const GUEST_ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 2);

/// The host as its guests see it: on port 53 the name service that the guest's agent serves; on other ports 127.0.0.1
/// of the host, which only a rule of the operator's opens.
pub const HOST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 77, 1);

/// The port of the name service.
pub const DNS_PORT: u16 = 53;

/// The guest's first message on a stream.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum EgressRequest<'a> {
    /// Dial, and carry the flow.
    Connect {
        /// Where to.
        address: Address,
        /// The port there.
        port: u16,
    },
    /// Answer a question to the name service.
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

/// The host's first message on a stream; the last one too, but for `Connected`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum FlowReply<'a> {
    /// The flow begins: [`Flow`] messages follow, both ways.
    Connected,
    /// There will be no flow, or no answer.
    Refused {
        /// Why.
        reason: Refusal,
    },
    /// What the name service says; at most [`DNS_ANSWER_BYTES_MAX`] bytes.
    Answer {
        /// One response in the wire format of RFC 1035.
        #[serde(borrow, with = "serde_bytes")]
        message: &'a [u8],
    },
}

/// Why there is no flow.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Refusal {
    /// The operator's policy, or the environment's, does not allow it.
    Policy,
    /// There is no way there from the host.
    Unreachable,
    /// The other end does not take the connection.
    Refused,
    /// The other end did not answer in time.
    TimedOut,
    /// As many flows are open as there may be.
    Busy,
}

/// A message of a flow that has begun, in either direction.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Flow<'a> {
    /// The next bytes; at least one, at most [`FLOW_CHUNK_BYTES_MAX`], and no more than the credit.
    Data(#[serde(borrow, with = "serde_bytes")] &'a [u8]),
    /// So many bytes more may be sent to this side.
    Credit {
        /// At least one; see [`FLOW_CREDIT_BYTES_MAX`].
        bytes: u32,
    },
    /// No data comes after this from this side; credit may.
    End,
    /// The connection was reset; nothing comes after this.
    Reset,
}
