// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Names of addresses in the reverse zones: `1.2.0.192.in-addr.arpa` (RFC 1035, section 3.5) and 32 hexadecimal digits
//! below `ip6.arpa` (RFC 3596, section 2.5).

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::DomainName;

/// The meaning of a name in the reverse zones.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reverse {
    /// The name is not in a reverse zone.
    No,
    /// The name of an address.
    Of(IpAddr),
    /// Another name in a reverse zone, such as that of a network.
    Part,
}

impl DomainName {
    /// Returns the meaning of the name in the reverse zones.
    #[must_use]
    pub fn reverse(&self) -> Reverse {
        let name = self.as_str();
        let below = |zone: &str| name.strip_suffix(zone).and_then(|rest| rest.strip_suffix('.'));
        if matches!(name, "in-addr.arpa" | "ip6.arpa") {
            return Reverse::Part;
        }
        let address = match (below("in-addr.arpa"), below("ip6.arpa")) {
            (Some(labels), _) => v4(labels).map(IpAddr::V4),
            (None, Some(labels)) => v6(labels).map(IpAddr::V6),
            (None, None) => return Reverse::No,
        };
        address.map_or(Reverse::Part, Reverse::Of)
    }
}

fn v4(labels: &str) -> Option<Ipv4Addr> {
    // An address in the reverse order is an address as well.
    labels.parse::<Ipv4Addr>().ok().map(|reversed| Ipv4Addr::from_bits(reversed.to_bits().swap_bytes()))
}

fn v6(labels: &str) -> Option<Ipv6Addr> {
    const DIGITS: usize = 32;
    let digits: Vec<&str> = labels.rsplit('.').collect();
    let is_address = digits.len() == DIGITS && digits.iter().all(|digit| digit.len() == 1);
    let bits = is_address.then(|| u128::from_str_radix(&digits.concat(), 16).ok())??;
    Some(Ipv6Addr::from_bits(bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reverse(name: &str) -> Reverse {
        name.parse::<DomainName>().unwrap().reverse()
    }

    #[test]
    fn names_in_reverse_zones_are_addresses_or_parts() {
        assert_eq!(reverse("1.2.0.192.IN-ADDR.arpa."), Reverse::Of([192, 0, 2, 1].into()));
        let v6 = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa";
        assert_eq!(reverse(v6), Reverse::Of("2001:db8::1".parse().unwrap()));
        for part in ["in-addr.arpa", "ip6.arpa", "2.0.192.in-addr.arpa", "01.2.0.192.in-addr.arpa", "a.in-addr.arpa"] {
            assert_eq!(reverse(part), Reverse::Part, "{part}");
        }
        for part in [&v6[2..], &format!("0.{v6}"), &v6.replace("8.b", "8b.0"), &v6.replace("8.b", "_.b")] {
            assert_eq!(reverse(part), Reverse::Part, "{part}");
        }
        for other in ["arpa", "example.org", "notin-addr.arpa", "1.2.0.192.in-addr.arpa.example"] {
            assert_eq!(reverse(other), Reverse::No, "{other}");
        }
    }
}
