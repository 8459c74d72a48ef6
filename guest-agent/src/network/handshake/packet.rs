// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The packets of a handshake: parses those that programs send, and builds those that the agent sends in the name of
//! the remote server.
//!
//! The formats are those of RFC 791 and RFC 8200 (IP), RFC 9293 (TCP), RFC 792 and RFC 4443 (ICMP). Programs choose
//! some bytes of a SYN, such as its options and data. So nothing is used before its length is checked, and the data is
//! left out: the program's kernel sends it again after the handshake.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Maximum number of bytes of a packet that are needed: an IPv4 header and a TCP header, both with all options. An IPv6
/// header is shorter. A SYN with an IPv6 extension header is not carried, and its `connect` times out.
pub(super) const PACKET_BYTES_MAX: usize = 60 + 60;

/// The sequence number of each probe, which the answer to a probe acknowledges. Any number is possible.
pub(super) const PROBE: u32 = 0x7761_6767;

pub(super) const FIN: u8 = 0x01;
pub(super) const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const ACK: u8 = 0x10;

const TCP: u8 = 6;
const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;

const V4_HEADER_BYTES: usize = 20;
const V6_HEADER_BYTES: usize = 40;
const TCP_HEADER_BYTES: usize = 20;

/// Offset of the checksum in a TCP header.
const TCP_CHECKSUM: usize = 16;

/// Offset of the checksum in an ICMP message.
const ICMP_CHECKSUM: usize = 2;

/// Initial time to live of the packets, as in packets of the kernel.
const HOPS: u8 = 64;

/// The ends of an attempt to connect.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Ends {
    /// The program's end.
    pub(super) client: SocketAddr,
    /// The address and port to which the program connects.
    pub(super) server: SocketAddr,
}

impl Ends {
    /// Creates the value from a connection's addresses, without their scopes and flow labels.
    pub(super) fn new(client: SocketAddr, server: SocketAddr) -> Self {
        let [client, server] = [client, server].map(|end| SocketAddr::new(end.ip(), end.port()));
        Self { client, server }
    }

    /// Builds a segment that a waiting program ignores. If the program has closed its socket, the kernel answers with a
    /// reset, and [`parse`] returns [`Captured::Gone`] for the answer.
    pub(super) fn probe(&self) -> Packet {
        segment(self.server, self.client, PROBE, 0, 0)
    }
}

/// A packet of a program that concerns an attempt to connect.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Captured {
    /// The program begins to connect, or repeats its SYN.
    Syn(Syn),
    /// The answer to a probe: the program no longer connects.
    Gone(Ends),
}

/// A program's request to connect.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Syn {
    pub(super) ends: Ends,
    /// The TCP header with its options, at most 60 bytes.
    header: Vec<u8>,
}

/// A packet, and the address to which it is sent.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Packet {
    pub(super) bytes: Vec<u8>,
    pub(super) to: IpAddr,
}

/// Parses a packet from its IP header on; the packet may be cut off after [`PACKET_BYTES_MAX`] bytes. Returns `None`
/// for a packet that does not concern an attempt to connect.
pub(super) fn parse(packet: &[u8]) -> Option<Captured> {
    let (from, to, segment) = match packet.first()? >> 4 {
        4 => parse_v4(packet)?,
        6 => parse_v6(packet)?,
        _ => return None,
    };
    let fixed: &[u8; TCP_HEADER_BYTES] = segment.first_chunk()?;
    let [f0, f1, t0, t1, _, _, _, _, a0, a1, a2, a3, words, flags, ..] = *fixed;
    let port = |high, low| u16::from_be_bytes([high, low]);
    let (client, server) = (SocketAddr::new(from, port(f0, f1)), SocketAddr::new(to, port(t0, t1)));
    let ends = Ends { client, server };
    if flags & (FIN | SYN | RST | ACK) == SYN {
        let header = segment.get(..usize::from(words >> 4) * 4).filter(|header| header.len() >= TCP_HEADER_BYTES)?;
        return Some(Captured::Syn(Syn { ends, header: header.to_vec() }));
    }
    let is_answer = flags & (SYN | RST | ACK) == RST | ACK && u32::from_be_bytes([a0, a1, a2, a3]) == PROBE;
    is_answer.then_some(Captured::Gone(ends))
}

/// Returns the source, the destination, and the TCP segment.
fn parse_v4(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    let fixed: &[u8; V4_HEADER_BYTES] = packet.first_chunk()?;
    let [first, _, _, _, _, _, fragment0, fragment1, _, protocol, _, _, rest @ ..] = *fixed;
    // A later fragment has no TCP header.
    let is_later_fragment = u16::from_be_bytes([fragment0, fragment1]) & 0x1fff != 0;
    let header_bytes = usize::from(first & 0xf) * 4;
    if protocol != TCP || is_later_fragment || header_bytes < V4_HEADER_BYTES {
        return None;
    }
    let [f0, f1, f2, f3, t0, t1, t2, t3] = rest;
    Some((Ipv4Addr::new(f0, f1, f2, f3).into(), Ipv4Addr::new(t0, t1, t2, t3).into(), packet.get(header_bytes..)?))
}

/// Returns the source, the destination, and the TCP segment.
fn parse_v6(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    let (fixed, segment) = packet.split_first_chunk::<V6_HEADER_BYTES>()?;
    let (&[_, _, _, _, _, _, next, _], addresses) = fixed.split_first_chunk()?;
    let (from, to) = addresses.split_first_chunk::<16>()?;
    let to: &[u8; 16] = to.first_chunk()?;
    (next == TCP).then(|| (Ipv6Addr::from(*from).into(), Ipv6Addr::from(*to).into(), segment))
}

impl Syn {
    /// Builds the same request without its data, to be sent once the server's answer is known.
    pub(super) fn again(&self) -> Packet {
        finish_segment(self.ends.client, self.ends.server, self.header.clone())
    }

    /// Builds the server's refusal, which makes the program's `connect` fail with ECONNREFUSED.
    pub(super) fn refusal(&self) -> Packet {
        segment(self.ends.server, self.ends.client, 0, self.sequence().wrapping_add(1), RST | ACK)
    }

    /// Builds a router's answer, which makes the program's `connect` fail with EHOSTUNREACH.
    pub(super) fn unreachable(&self) -> Packet {
        let Ends { client, server } = self.ends;
        // Type and code are those of an unreachable host or address. The answer quotes the packet that it is about.
        let (protocol, kind) = if client.is_ipv4() { (ICMP, [3, 1]) } else { (ICMP_V6, [1, 3]) };
        let mut message = [kind[0], kind[1], 0, 0, 0, 0, 0, 0].to_vec();
        message.extend(self.again().bytes);
        let sum = if client.is_ipv4() { 0 } else { pseudo_header(server.ip(), client.ip(), protocol, message.len()) };
        set_checksum(&mut message, ICMP_CHECKSUM, sum);
        ip(server.ip(), client.ip(), protocol, &message)
    }

    fn sequence(&self) -> u32 {
        let bytes = self.header.get(4..8).and_then(<[u8]>::first_chunk).copied();
        bytes.map_or(0, u32::from_be_bytes)
    }
}

/// Builds a segment without options and data.
fn segment(from: SocketAddr, to: SocketAddr, sequence: u32, acknowledged: u32, flags: u8) -> Packet {
    const WORDS: u8 = 5;
    let mut header = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    header.extend([sequence.to_be_bytes(), acknowledged.to_be_bytes()].concat());
    // The window, the checksum and the urgent pointer follow the flags.
    header.extend([WORDS << 4, flags, 0, 0, 0, 0, 0, 0]);
    finish_segment(from, to, header)
}

/// Fills in the checksum of a segment, which consists of a header only.
fn finish_segment(from: SocketAddr, to: SocketAddr, mut header: Vec<u8>) -> Packet {
    let sum = pseudo_header(from.ip(), to.ip(), TCP, header.len());
    set_checksum(&mut header, TCP_CHECKSUM, sum);
    ip(from.ip(), to.ip(), TCP, &header)
}

/// Puts an IP header before `body`. The kernel fills in the checksum of an IPv4 header.
fn ip(from: IpAddr, to: IpAddr, protocol: u8, body: &[u8]) -> Packet {
    const DONT_FRAGMENT: u8 = 0x40;
    let length = |header_bytes| u16::try_from(header_bytes + body.len()).unwrap_or(u16::MAX).to_be_bytes();
    let mut bytes = if let (IpAddr::V4(_), IpAddr::V4(_)) = (from, to) {
        let [length0, length1] = length(V4_HEADER_BYTES);
        vec![0x45, 0, length0, length1, 0, 0, DONT_FRAGMENT, 0, HOPS, protocol, 0, 0]
    } else {
        let [length0, length1] = length(0);
        vec![0x60, 0, 0, 0, length0, length1, protocol, HOPS]
    };
    bytes.extend(octets(from));
    bytes.extend(octets(to));
    bytes.extend(body);
    Packet { bytes, to }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Returns the sum of the pseudo header that the checksum of TCP and of ICMPv6 includes.
fn pseudo_header(from: IpAddr, to: IpAddr, protocol: u8, bytes: usize) -> u32 {
    let length = u32::try_from(bytes).unwrap_or(u32::MAX);
    sum(&octets(from)) + sum(&octets(to)) + length + u32::from(protocol)
}

/// Computes the checksum of a message (RFC 1071), and puts it at `offset`.
fn set_checksum(message: &mut [u8], offset: usize, initial: u32) {
    if let Some(field) = message.get_mut(offset..offset + 2) {
        field.fill(0);
    }
    let mut folded = initial + sum(message);
    while folded > 0xffff {
        folded = (folded & 0xffff) + (folded >> 16);
    }
    if let Some(field) = message.get_mut(offset..offset + 2) {
        // The upper half of a folded sum is zero.
        field.copy_from_slice(&u16::try_from(!folded & 0xffff).unwrap_or_default().to_be_bytes());
    }
}

fn sum(bytes: &[u8]) -> u32 {
    let word = |pair: &[u8]| match *pair {
        [high, low] => u32::from(u16::from_be_bytes([high, low])),
        [high] => u32::from(high) << 8,
        _ => 0,
    };
    bytes.chunks(2).map(word).sum()
}

#[cfg(test)]
pub(super) mod tests;
