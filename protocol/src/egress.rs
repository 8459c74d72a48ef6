// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The egress link carries the guest's TCP connections and DNS queries. The guest opens one stream for each connection
//! and for each query.
//!
//! ```text
//!   guest agent                                     host
//!       │  dials the egress link                     │ listens before the machine starts
//!       ├─ Preamble ────────────────────────────────▶│
//!       │◀─────────────────────────────────── Answer ┤
//!       │◀═════════════ streams from here on ═══════▶│
//!       │                                            │
//!       ├─ EgressRequest::Connect ──────────────────▶│ decides, dials
//!       │◀──────────────────────────────── Connected ┤ or Refused, then end of stream
//!       │◀─ data … then the end or a close ─────────▶│ both ways, each at its own pace
//!       │                                            │
//!       ├─ EgressRequest::Resolve ──────────────────▶│ decides, resolves
//!       │◀─────────────────────────────────── Answer ┤ or Refused, then end of stream
//! ```
//!
//! **Ends of a flow.** After `Connected`, the stream carries the connection's bytes as they are. The end of one
//! direction of the stream is like a TCP FIN; the other direction continues. A stream that a side closes before both
//! directions have ended was reset or cut off.
//!
//! **Credit.** Each side may first send [`FLOW_CREDIT_BYTES`] bytes on a stream of this link, and more as the other
//! side grants more. Only the credit limits the data that a side buffers for a slow connection. If a guest exceeds its
//! credit, the host ends the link.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// Maximum number of open streams on the egress link. If a guest opens more, the host ends the link. An honest guest
/// has at most [`FLOWS_MAX`] open flows, so that streams that are still closing do not block new ones.
pub const EGRESS_STREAMS_MAX: usize = 512;

/// Maximum number of flows and DNS queries together at a time. The host refuses further requests with
/// [`Refusal::Busy`].
pub const FLOWS_MAX: usize = EGRESS_STREAMS_MAX / 2;

/// Initial credit of each side on a flow in bytes. The initial credit of all [`FLOWS_MAX`] flows adds up to 2 MiB.
pub const FLOW_CREDIT_BYTES: u32 = 8 * 1024;

/// Maximum credit of a side on a flow in bytes: well above the link's bandwidth-delay product. A grant that raises the
/// credit above this maximum violates the rules of the link.
pub const FLOW_CREDIT_BYTES_MAX: u32 = 256 * 1024;

/// Maximum length of a DNS query in bytes. Resolvers do not accept longer queries over UDP.
pub const DNS_QUERY_BYTES_MAX: usize = 4096;

/// Maximum length of the body of a guest's frame in bytes: enough for a DNS query, and the fields around it.
pub const EGRESS_FRAME_BYTES_MAX: usize = DNS_QUERY_BYTES_MAX + 64;

/// Maximum length of a DNS response over UDP in bytes, which every client accepts. The host leaves out addresses that
/// do not fit. The guest sends the first records of other responses, and clients then ask over TCP.
pub const DNS_DATAGRAM_BYTES_MAX: usize = 512;

/// Maximum length of a DNS response in bytes: several times the longest lists of texts that names have in practice. The
/// host leaves out records that do not fit.
pub const DNS_ANSWER_BYTES_MAX: usize = 16 * 1024;

/// Maximum length of the body of a reply's frame in bytes: enough for a DNS response, and the fields around it.
pub const EGRESS_REPLY_BYTES_MAX: usize = DNS_ANSWER_BYTES_MAX + 64;

/// The guest's own IPv4 address.
pub const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 77, 2);

/// The guest's own IPv6 address, a unique local address. The guest has this address only if the host has IPv6.
pub const GUEST_ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 2);

/// The address of the host as seen by the guest. On port 53 the guest's agent serves DNS. Connections to other ports go
/// to 127.0.0.1 of the host, if a rule of the operator allows them.
pub const HOST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 77, 1);

pub const DNS_PORT: u16 = 53;

/// The guest's first message on a stream.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum EgressRequest<'a> {
    /// Asks the host to dial an address and carry the flow.
    Connect { address: Address, port: u16 },
    /// Asks the host to answer a DNS query.
    Resolve {
        /// One query in the wire format of RFC 1035, without a length prefix; at most [`DNS_QUERY_BYTES_MAX`] bytes.
        #[serde(borrow, with = "serde_bytes")]
        message: &'a [u8],
    },
}

/// An IP address. The bytes are in network order.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Address {
    V4([u8; 4]),
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

/// The host's first message on a stream. Every reply except `Connected` is also the last message.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum FlowReply<'a> {
    /// The flow begins: the connection's data follows, both ways.
    Connected,
    /// The flow or the query was refused.
    Refused { reason: Refusal },
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
    /// The policy of the operator or of the environment forbids the request.
    Policy,
    /// The host has no route to the address.
    Unreachable,
    /// The destination refused the connection.
    Refused,
    /// The destination did not answer in time.
    TimedOut,
    /// Too many flows are open.
    Busy,
}
