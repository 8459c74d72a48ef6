// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What one environment was told about names: which addresses it was given under which, and until when it may use them.

use core::net::IpAddr;
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{DomainName, canonical};

/// Seconds that an answer may be kept, as answers tell it: the system's resolver does not say how long its own may be.
pub const ANSWER_TTL_S: u32 = 60;

/// How long an address counts as given under its name: as long as the answer may be kept, and as long again for a
/// program that asked at the last moment and tries several addresses.
const HELD: Duration = Duration::from_secs(2 * ANSWER_TTL_S as u64);

/// Addresses under names that one environment can have; a new one takes the place of the oldest.
const GRANTS_MAX: usize = 1024;

/// The memory of one environment; see the module.
#[derive(Debug, Default)]
pub struct Granted(VecDeque<Grant>);

#[derive(Debug)]
struct Grant {
    address: IpAddr,
    name: DomainName,
    until: Instant,
}

impl Granted {
    /// Notes that the environment was told so.
    pub fn give(&mut self, name: &DomainName, address: IpAddr, now: Instant) {
        let address = canonical(address);
        self.0.retain(|grant| grant.until > now && !(grant.address == address && grant.name == *name));
        if self.0.len() >= GRANTS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(Grant { address, name: name.clone(), until: now + HELD });
    }

    /// The names under which the environment may use an address now, the latest first.
    #[must_use]
    pub fn names(&self, address: IpAddr, now: Instant) -> Vec<DomainName> {
        let address = canonical(address);
        let known = self.0.iter().rev().filter(|grant| grant.address == address && grant.until > now);
        known.map(|grant| grant.name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DomainName {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_is_known_by_its_names_until_their_time_is_over() {
        let (mut granted, start) = (Granted::default(), Instant::now());
        let address: IpAddr = [192, 0, 2, 1].into();
        granted.give(&name("a.example"), address, start);
        granted.give(&name("b.example"), address, start + Duration::from_secs(60));
        let names = |seconds| granted.names(address, start + Duration::from_secs(seconds));
        assert_eq!(names(119), [name("b.example"), name("a.example")]);
        assert_eq!(names(120), [name("b.example")]);
        assert_eq!(names(180), []);
        assert_eq!(granted.names([192, 0, 2, 2].into(), start), []);
        let mapped: IpAddr = "::ffff:192.0.2.1".parse().unwrap();
        assert_eq!(granted.names(mapped, start).len(), 2);
    }

    #[test]
    fn the_memory_of_names_is_bounded_and_forgets_the_oldest() {
        let (mut granted, now) = (Granted::default(), Instant::now());
        for number in 0..10_000 {
            granted.give(&name(&format!("n{number}.example")), [10, 0, 0, 1].into(), now);
        }
        let names = granted.names([10, 0, 0, 1].into(), now);
        assert_eq!((names.len(), names[0].as_str()), (GRANTS_MAX, "n9999.example"));
    }
}
