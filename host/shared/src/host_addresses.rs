// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The addresses of the host's interfaces. Neither a guest nor an image that a client has chosen reaches them through
//! `public` or a name.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use crate::{address::embedded, mutex::lock};

/// Maximum age of the known addresses. Reading them takes the kernel a millisecond on a host with hundreds of
/// interfaces, and a guest can open a hundred flows per second. A new address of the host counts within this time.
const AGE_MAX: Duration = Duration::from_secs(1);

/// The addresses of the host's interfaces. If they are unknown (`None`), each address counts as the host's.
#[derive(Debug)]
pub struct HostAddresses(Option<Vec<IpAddr>>);

impl HostAddresses {
    fn read() -> Self {
        let address = |own: nix::sys::socket::SockaddrStorage| {
            let v4 = own.as_sockaddr_in().map(|own| own.ip().into());
            v4.or_else(|| own.as_sockaddr_in6().map(|own| own.ip().into()))
        };
        let interfaces = nix::ifaddrs::getifaddrs().ok();
        Self(interfaces.map(|all| all.filter_map(|interface| address(interface.address?)).collect()))
    }

    /// Whether an address, in its canonical form, belongs to the host, or is the form of such an IPv4 address by NAT64,
    /// 6to4 or Teredo: a translator on the way may lead back to the host.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let Some(own) = &self.0 else { return true };
        let within = match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(embedded(address)),
        };
        own.contains(&address) || within.into_iter().flatten().any(|within| own.contains(&IpAddr::V4(within)))
    }
}

/// The latest known addresses.
#[derive(Debug, Default)]
pub struct HostAddressCache(Mutex<Option<(Instant, Arc<HostAddresses>)>>);

impl HostAddressCache {
    /// Returns the host's addresses, read at most `AGE_MAX` ago. Addresses that could not be read are not kept.
    #[must_use]
    pub fn current(&self) -> Arc<HostAddresses> {
        let mut known = lock(&self.0);
        let now = Instant::now();
        match &*known {
            Some((since, addresses)) if now.saturating_duration_since(*since) < AGE_MAX => Arc::clone(addresses),
            Some(_) | None => {
                let read = Arc::new(HostAddresses::read());
                *known = read.0.is_some().then(|| (now, Arc::clone(&read)));
                read
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_an_own_ipv4_address_is_the_hosts() {
        let host = HostAddresses(Some(vec![[11, 22, 33, 44].into(), "2001:db8::7".parse().unwrap()]));
        let check = |address: &str, expected: bool| {
            assert_eq!(host.contains(address.parse().unwrap()), expected, "{address}");
        };
        // 11.22.33.44 is b16:212c; Teredo inverts the client's address.
        for own in [
            "11.22.33.44",
            "2001:db8::7",
            "64:ff9b::b16:212c",
            "64:ff9b:1::b16:212c",
            "64:ff9b:1:2:3:4:b16:212c",
            "2002:b16:212c::1",
            "2001:0:b16:212c::f7f7:f7f7",
            "2001:0:808:808::f4e9:ded3",
            "::ffff:11.22.33.44",
            "::11.22.33.44",
        ] {
            check(own, true);
        }
        for other in ["11.22.33.45", "64:ff9b::b16:212d", "2001:db8::b16:212c", "2002:b16:212d::b16:212c"] {
            check(other, false);
        }
        assert!(HostAddresses(None).contains([1, 1, 1, 1].into()), "unknown addresses are the host's");
    }

    #[test]
    fn addresses_are_read_again_after_a_second() {
        let cache = HostAddressCache::default();
        let first = cache.current();
        assert!(Arc::ptr_eq(&first, &cache.current()) && first.contains([127, 0, 0, 1].into()));
        let expired = Instant::now().checked_sub(AGE_MAX).unwrap();
        *lock(&cache.0) = Some((expired, Arc::new(HostAddresses(Some(Vec::new())))));
        assert!(cache.current().contains([127, 0, 0, 1].into()));
    }
}
