// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! One rule of a policy: `[allow|deny] TARGET[:PORT[-PORT]]`.

use core::net::IpAddr;
use std::{fmt, ops::RangeInclusive, str::FromStr};

use waggle_shared::address::{Kind, canonical, embedded, kind};

use super::{
    Destination,
    name::{DomainNameFault, NamePattern},
};

/// Length of the common prefix of all IPv4-mapped IPv6 addresses, in bits (RFC 4291, section 2.5.5.2).
const MAPPED_PREFIX_BITS: u8 = 96;

/// A rule that allows or denies flows to a target.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Rule {
    pub(super) allows: bool,
    pub(super) target: Target,
    /// The ports that the rule covers; `None` for all ports.
    pub(super) ports: Option<RangeInclusive<u16>>,
}

/// The destinations that a rule covers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Target {
    /// The public internet, without the host's own addresses.
    Public,
    Range(Range),
    /// Addresses that the environment received for a name.
    Name(NamePattern),
}

/// A range of addresses with a common prefix, in canonical form.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Range {
    first: IpAddr,
    prefix_bits: u8,
}

impl Rule {
    pub(super) fn covers(&self, port: u16) -> bool {
        self.ports.as_ref().is_none_or(|ports| ports.contains(&port))
    }

    /// Whether the rule covers the destination, regardless of the port. `is_named` says whether the destination has a
    /// name that a rule with a name matches.
    pub(super) fn matches(&self, to: &Destination, is_named: bool) -> bool {
        match &self.target {
            Target::Public => kind(to.address) == Kind::Public && !to.is_hosts_own,
            Target::Range(range) if self.allows => range.holds(to.address),
            Target::Range(range) => range.holds(to.address) || range.holds_within(to.address),
            Target::Name(pattern) => is_named && (!self.allows || name_may_allow(pattern, to)),
        }
    }
}

/// Whether a rule with a name may allow an address. The owner of a name controls the addresses of that name. A rule
/// with a name therefore never allows the host itself or a [`Kind::Special`] address, such as cloud metadata, and only
/// an exact name allows a private network.
fn name_may_allow(pattern: &NamePattern, to: &Destination) -> bool {
    match (kind(to.address), pattern) {
        _ if to.is_hosts_own => false,
        (Kind::Public, _) | (Kind::Private, NamePattern::Exact(_)) => true,
        (Kind::Private, NamePattern::Under(_)) | (Kind::Special, _) => false,
    }
}

impl Range {
    fn holds(&self, address: IpAddr) -> bool {
        match (self.first, address) {
            (IpAddr::V4(first), IpAddr::V4(address)) => {
                let differing = (first.to_bits() ^ address.to_bits()).checked_shr(32 - u32::from(self.prefix_bits));
                differing.unwrap_or(0) == 0
            }
            (IpAddr::V6(first), IpAddr::V6(address)) => {
                let differing = (first.to_bits() ^ address.to_bits()).checked_shr(128 - u32::from(self.prefix_bits));
                differing.unwrap_or(0) == 0
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }

    fn holds_within(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(_) => false,
            IpAddr::V6(address) => embedded(address).any(|within| self.holds(IpAddr::V4(within))),
        }
    }
}

impl FromStr for Rule {
    type Err = RuleFault;

    fn from_str(text: &str) -> Result<Self, RuleFault> {
        let (allows, rest) = match text.split_once(char::is_whitespace) {
            Some(("allow", rest)) => (true, rest.trim_start()),
            Some(("deny", rest)) => (false, rest.trim_start()),
            Some(_) => return Err(RuleFault::Words),
            None => (true, text),
        };
        // An IPv6 address with a port must be in brackets, so several colons without a bracket mean an address without
        // a port.
        if !rest.starts_with('[') && rest.matches(':').count() > 1 {
            return Ok(Self { allows, target: Target::Range(rest.parse()?), ports: None });
        }
        let (target, ports) = match rest.rsplit_once(':') {
            Some((target, ports)) if !ports.contains(']') => (target, Some(self::ports(ports)?)),
            Some(_) | None => (rest, None),
        };
        let target = match target.strip_prefix('[').and_then(|target| target.strip_suffix(']')) {
            Some(range) => Target::Range(range.parse()?),
            None => self::target(target)?,
        };
        Ok(Self { allows, target, ports })
    }
}

fn target(text: &str) -> Result<Target, RuleFault> {
    if text == "public" {
        return Ok(Target::Public);
    }
    let looks_like_an_address = text.contains(['/', ':']) || text.split('.').all(|part| part.parse::<u32>().is_ok());
    if looks_like_an_address {
        return text.parse().map(Target::Range);
    }
    text.parse().map(Target::Name).map_err(|source| RuleFault::Name { source })
}

fn ports(text: &str) -> Result<RangeInclusive<u16>, RuleFault> {
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (port(first), port(last)) {
        (Some(first), Some(last)) if first <= last => Ok(first..=last),
        _ => Err(RuleFault::Port),
    }
}

impl FromStr for Range {
    type Err = RuleFault;

    fn from_str(text: &str) -> Result<Self, RuleFault> {
        let (first, bits) = text.split_once('/').map_or((text, None), |(first, bits)| (first, Some(bits)));
        let first: IpAddr = first.parse().map_err(|_no_address| RuleFault::Address)?;
        let start = canonical(first);
        // A range that starts with an IPv4-mapped address must contain only such addresses.
        let least = if first.is_ipv6() && start.is_ipv4() { MAPPED_PREFIX_BITS } else { 0 };
        let most = if first.is_ipv4() { 32 } else { 128 };
        let fits = |bits: &u8| (least..=most).contains(bits);
        let prefix_bits: u8 = match bits {
            None => most,
            Some(bits) => bits.parse().ok().filter(fits).ok_or(RuleFault::Prefix { least, most })?,
        };
        let range = Self { first: start, prefix_bits: prefix_bits - least };
        if range.is_exact() { Ok(range) } else { Err(RuleFault::HostBits { prefix_bits }) }
    }
}

impl Range {
    /// Whether all bits after the prefix are zero. A range such as 10.1.2.3/8 is probably a mistake.
    fn is_exact(&self) -> bool {
        let behind = match self.first {
            IpAddr::V4(first) => first.to_bits().checked_shl(u32::from(self.prefix_bits)).map(u128::from),
            IpAddr::V6(first) => first.to_bits().checked_shl(u32::from(self.prefix_bits)),
        };
        behind.unwrap_or(0) == 0
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.allows { "" } else { "deny " };
        match (&self.target, &self.ports) {
            (Target::Range(range @ Range { first: IpAddr::V6(_), .. }), Some(_)) => write!(f, "{word}[{range}]")?,
            (Target::Range(range), _) => write!(f, "{word}{range}")?,
            (Target::Name(pattern), _) => write!(f, "{word}{pattern}")?,
            (Target::Public, _) => write!(f, "{word}public")?,
        }
        match &self.ports {
            None => Ok(()),
            Some(ports) if ports.start() == ports.end() => write!(f, ":{}", ports.start()),
            Some(ports) => write!(f, ":{}-{}", ports.start(), ports.end()),
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let most = if self.first.is_ipv4() { 32 } else { 128 };
        if self.prefix_bits == most {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}/{}", self.first, self.prefix_bits)
        }
    }
}

/// An invalid rule.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RuleFault {
    /// Several words, of which the first is neither `allow` nor `deny`.
    #[error("must be [allow|deny] TARGET[:PORT], where TARGET is a name, *.name, an address, a range, or `public`")]
    Words,
    #[error("invalid IP address or range; IPv6 with a port must be like [2001:db8::/32]:443")]
    Address,
    #[error("the prefix must have {least} to {most} bits")]
    Prefix {
        /// 96 for a range of IPv4-mapped addresses, otherwise 0.
        least: u8,
        /// The number of bits of an address.
        most: u8,
    },
    /// Bits set after the prefix.
    #[error("the bits after the first {prefix_bits} must be zero")]
    HostBits { prefix_bits: u8 },
    #[error("a port must be a number from 1 to 65535, or a range like 8000-8100")]
    Port,
    #[error("{source}")]
    Name { source: DomainNameFault },
}
