// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The addresses of the host's interfaces, which no guest reaches through `public` or a name.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use waggle_shared::mutex::lock;

/// Maximum age of the known addresses. Reading them takes the kernel a millisecond on a host with hundreds of
/// interfaces, and a guest can open a hundred flows per second. A new address of the host counts within this time.
const AGE_MAX: Duration = Duration::from_secs(1);

/// The addresses of the host's interfaces. If they are unknown (`None`), each address counts as the host's.
#[derive(Debug)]
pub(super) struct HostAddresses(Option<Vec<IpAddr>>);

impl HostAddresses {
    fn read() -> Self {
        let address = |own: nix::sys::socket::SockaddrStorage| {
            let v4 = own.as_sockaddr_in().map(|own| own.ip().into());
            v4.or_else(|| own.as_sockaddr_in6().map(|own| own.ip().into()))
        };
        let interfaces = nix::ifaddrs::getifaddrs().ok();
        Self(interfaces.map(|all| all.filter_map(|interface| address(interface.address?)).collect()))
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.0.as_ref().is_none_or(|own| own.contains(&address))
    }
}

/// The latest known addresses.
#[derive(Debug, Default)]
pub(super) struct HostAddressCache(Mutex<Option<(Instant, Arc<HostAddresses>)>>);

impl HostAddressCache {
    /// Returns the host's addresses, read at most [`AGE_MAX`] ago. Addresses that could not be read are not kept.
    pub(super) fn current(&self) -> Arc<HostAddresses> {
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
    fn addresses_are_read_again_after_a_second() {
        let cache = HostAddressCache::default();
        let first = cache.current();
        assert!(Arc::ptr_eq(&first, &cache.current()) && first.contains([127, 0, 0, 1].into()));
        let expired = Instant::now().checked_sub(AGE_MAX).unwrap();
        *lock(&cache.0) = Some((expired, Arc::new(HostAddresses(Some(Vec::new())))));
        assert!(cache.current().contains([127, 0, 0, 1].into()));
    }
}
