// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! One rule of a policy: `[allow|deny] TARGET[:PORT[-PORT]]`.

use core::net::IpAddr;
use std::{fmt, ops::RangeInclusive, str::FromStr};

use super::{
    Destination, Kind,
    address::{canonical, embedded, kind},
    name::{DomainNameFault, NamePattern},
};

/// Whether flows to a target are allowed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Rule {
    pub(super) allows: bool,
    pub(super) target: Target,
    /// All of them if there are none.
    pub(super) ports: Option<RangeInclusive<u16>>,
}

/// What a rule is about.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Target {
    /// The public internet, less the host's own addresses.
    Public,
    /// Addresses that begin alike.
    Range(Range),
    /// Addresses that the environment was given under a name.
    Name(NamePattern),
}

/// Addresses that begin alike, in canonical form.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Range {
    first: IpAddr,
    prefix_bits: u8,
}

impl Rule {
    pub(super) fn covers(&self, port: u16) -> bool {
        self.ports.as_ref().is_none_or(|ports| ports.contains(&port))
    }

    /// Whether it is about the destination, whatever the port.
    pub(super) fn matches(&self, to: &Destination<'_>) -> bool {
        match &self.target {
            Target::Public => kind(to.address) == Kind::Public && !to.is_hosts_own,
            Target::Range(range) if self.allows => range.holds(to.address),
            Target::Range(range) => range.holds(to.address) || range.holds_within(to.address),
            Target::Name(pattern) => {
                to.names.iter().any(|name| pattern.matches(name)) && (!self.allows || leads(pattern, to))
            }
        }
    }
}

/// Whether an address may be allowed for its name's sake. Whoever owns a name decides where it leads, so it never leads
/// to the host itself or to cloud metadata, and to a private network only where the rule has the very name.
fn leads(pattern: &NamePattern, to: &Destination<'_>) -> bool {
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
        // An IPv6 address has colons of its own; with a port it stands in brackets.
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
        let most = if first.is_ipv4() { 32 } else { 128 };
        let prefix_bits: u8 = match bits {
            None => most,
            Some(bits) => bits.parse().ok().filter(|bits| *bits <= most).ok_or(RuleFault::Prefix { most })?,
        };
        let range = match (first, canonical(first)) {
            (IpAddr::V6(_), first @ IpAddr::V4(_)) => {
                Self { first, prefix_bits: prefix_bits.checked_sub(96).ok_or(RuleFault::Prefix { most })? }
            }
            (_, first) => Self { first, prefix_bits },
        };
        if range.is_exact() { Ok(range) } else { Err(RuleFault::HostBits { prefix_bits }) }
    }
}

impl Range {
    /// Whether nothing is set behind the prefix: who writes 10.1.2.3/8 may mean something else.
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

/// A text is no rule.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RuleFault {
    /// The first of several words is none that a rule begins with.
    #[error("a rule is [allow|deny] TARGET[:PORT], where TARGET is a name, *.name, an address or a range, or `public`")]
    Words,
    /// What looks like an address is none.
    #[error("that is no IP address or range; an IPv6 one with a port is written as [2001:db8::/32]:443")]
    Address,
    /// A prefix that the address cannot have.
    #[error("a prefix has 0 to {most} bits here")]
    Prefix {
        /// As many as the address has.
        most: u8,
    },
    /// Bits behind the prefix.
    #[error("the address has bits set behind its first {prefix_bits}")]
    HostBits {
        /// The prefix.
        prefix_bits: u8,
    },
    /// No port.
    #[error("a port is a number from 1 to 65535, or two of them as 8000-8100")]
    Port,
    /// No name.
    #[error("{source}")]
    Name {
        /// What is wrong.
        source: DomainNameFault,
    },
}
