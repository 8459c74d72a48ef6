// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Kinds of IP addresses, according to the IANA registries of special-purpose addresses.
//!
//! Some IPv6 addresses contain IPv4 addresses; a policy must check the IPv4 address as well.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A kind of IP address.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// On the public internet.
    Public,
    /// Not on the public internet: private, shared, unique local, documentation and benchmark addresses.
    Private,
    /// Loopback, link-local, cloud metadata, multicast, broadcast, reserved and unassigned addresses.
    Special,
}

/// Addresses of cloud metadata services, which give out credentials: Azure (a public address), Alibaba, Oracle.
/// Link-local metadata addresses are not listed, because all link-local addresses are [`Kind::Special`].
const METADATA_V4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192)];

/// IPv6 addresses of the metadata services of Google, Oracle and Scaleway; `kind_v6` has a separate rule for Amazon.
const METADATA_V6: [Ipv6Addr; 3] = [
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe),
    Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42),
];

/// Converts IPv4-mapped IPv6 addresses to their IPv4 address; returns all others unchanged.
#[must_use]
pub fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// Returns the kind of an address. If an IPv6 address contains IPv4 addresses, the most restricted of all kinds counts.
#[must_use]
pub fn kind(address: IpAddr) -> Kind {
    match canonical(address) {
        IpAddr::V4(address) => kind_v4(address),
        IpAddr::V6(address) => {
            let worst_within = embedded(address).map(kind_v4).max();
            worst_within.map_or_else(|| kind_v6(address), |within| within.max(kind_v6(address)))
        }
    }
}

fn kind_v4(address: Ipv4Addr) -> Kind {
    let [a, b, c, _] = address.octets();
    match (a, b, c) {
        // "This network" (0.0.0.0/8), loopback, link-local, multicast, reserved, broadcast.
        (0 | 127 | 224.., ..) | (169, 254, _) => Kind::Special,
        _ if METADATA_V4.contains(&address) => Kind::Special,
        (10, ..) | (172, 16..=31, _) | (192, 168, _) | (100, 64..=127, _) => Kind::Private,
        // Protocol assignments, documentation, the relays of 6to4, benchmarks.
        (192, 0, 0 | 2) | (192, 88, 99) | (198, 51, 100) | (203, 0, 113) | (198, 18..=19, _) => Kind::Private,
        _ => Kind::Public,
    }
}

fn kind_v6(address: Ipv6Addr) -> Kind {
    match address.segments() {
        // NAT64's well-known prefix; `kind` checks the embedded address.
        [0x64, 0xff9b, 0, 0, 0, 0, _, _] => Kind::Public,
        [0x64, 0xff9b, 1, ..] => Kind::Private,
        // Protocol assignments with Teredo and benchmarks, 6to4, documentation.
        [0x2001, 0..=0x1ff, ..] | [0x2002, ..] | [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Kind::Private,
        [0x2000..=0x3fff, ..] => Kind::Public,
        // Instance services of Amazon: metadata, names, time.
        [0xfd00, 0xec2, ..] => Kind::Special,
        _ if METADATA_V6.contains(&address) => Kind::Special,
        // Unique local, and the older site-local.
        [0xfc00..=0xfdff | 0xfec0..=0xfeff, ..] => Kind::Private,
        _ => Kind::Special,
    }
}

/// Returns the IPv4 addresses embedded in an IPv6 address by mapping, NAT64, 6to4 or Teredo.
pub fn embedded(address: Ipv6Addr) -> impl Iterator<Item = Ipv4Addr> {
    let [a, b, c, d, _, _, g, h] = address.segments();
    let of = |high: u16, low: u16| Some(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)));
    let found = match (a, b, c, d) {
        (0, 0, 0, 0) | (0x64, 0xff9b, ..) => [of(g, h), None],
        (0x2002, ..) => [of(b, c), None],
        // Teredo: the server's address, and the client's address with its bits inverted.
        (0x2001, 0, ..) => [of(c, d), of(!g, !h)],
        _ => [None, None],
    };
    found.into_iter().flatten()
}
