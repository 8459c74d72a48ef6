// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The addresses that one environment received for host names, and their expiry.

use core::net::IpAddr;
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use waggle_shared::address::canonical;

use super::{DomainName, NameRules};

/// TTL in seconds of the DNS answers to guests. It is constant, because the system's resolver does not report TTLs.
pub const ANSWER_TTL_S: u32 = 60;

/// The lifetime of a grant: twice the TTL. The second half is for programs that use an answer shortly before its TTL
/// ends and then try several addresses.
const HELD: Duration = Duration::from_secs(2 * ANSWER_TTL_S as u64);

/// Maximum number of grants of one environment. At the limit, a new grant evicts the oldest.
const GRANTS_MAX: usize = 1024;

/// The grants of one environment.
#[derive(Debug, Default)]
pub struct Granted(VecDeque<Grant>);

#[derive(Debug)]
struct Grant {
    address: IpAddr,
    name: DomainName,
    /// The rules that match the name.
    rules: NameRules,
    until: Instant,
}

impl Granted {
    /// Records that the environment received an address for a name, which these rules match.
    pub fn grant(&mut self, name: &DomainName, rules: NameRules, address: IpAddr, now: Instant) {
        let address = canonical(address);
        self.0.retain(|grant| grant.until > now && !(grant.address == address && grant.name == *name));
        if self.0.len() >= GRANTS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(Grant { address, name: name.clone(), rules, until: now + HELD });
    }

    /// Returns the names that have a valid grant for the address, newest first, each with the rules that match it.
    pub fn names(&self, address: IpAddr, now: Instant) -> impl Iterator<Item = (&DomainName, NameRules)> {
        let address = canonical(address);
        let known = self.0.iter().rev().filter(move |grant| grant.address == address && grant.until > now);
        known.map(|grant| (&grant.name, grant.rules))
    }

    /// Returns the rules that match any of these names.
    #[must_use]
    pub fn rules(&self, address: IpAddr, now: Instant) -> NameRules {
        self.names(address, now).map(|(_, rules)| rules).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DomainName {
        text.parse().unwrap()
    }

    fn names(granted: &Granted, address: IpAddr, now: Instant) -> Vec<DomainName> {
        granted.names(address, now).map(|(name, _)| name.clone()).collect()
    }

    #[test]
    fn address_keeps_its_names_until_they_expire() {
        let (mut granted, start) = (Granted::default(), Instant::now());
        let address: IpAddr = [192, 0, 2, 1].into();
        let none = NameRules::default();
        granted.grant(&name("a.example"), none, address, start);
        granted.grant(&name("b.example"), none, address, start + Duration::from_secs(60));
        let later = |seconds| names(&granted, address, start + Duration::from_secs(seconds));
        assert_eq!(later(119), [name("b.example"), name("a.example")]);
        assert_eq!(later(120), [name("b.example")]);
        assert_eq!(later(180), []);
        assert_eq!(names(&granted, [192, 0, 2, 2].into(), start), []);
        let mapped: IpAddr = "::ffff:192.0.2.1".parse().unwrap();
        assert_eq!(names(&granted, mapped, start).len(), 2);
    }

    #[test]
    fn grants_are_limited_and_the_oldest_is_evicted() {
        let (mut granted, now) = (Granted::default(), Instant::now());
        for number in 0..10_000 {
            let name = name(&format!("n{number}.example"));
            granted.grant(&name, NameRules::default(), [10, 0, 0, 1].into(), now);
        }
        let names = names(&granted, [10, 0, 0, 1].into(), now);
        assert_eq!((names.len(), names[0].as_str()), (GRANTS_MAX, "n9999.example"));
    }
}
