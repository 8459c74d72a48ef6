// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Network policies: the destinations that guests may reach, by the server's policy and an environment's own.
//!
//! A policy is a list of rules. The first rule that matches decides; without a match the destination is denied. A guest
//! connects to addresses. For rules with names, the host remembers the addresses that it returned to this environment
//! for each name, see [`Granted`].

mod address;
mod granted;
mod name;
mod refused;
mod rule;

use core::net::IpAddr;
use std::{fmt, str::FromStr, sync::Arc};

use self::rule::{Rule, Target};
pub use self::{
    address::{Kind, canonical, kind},
    granted::{ANSWER_TTL_S, Granted},
    name::{DomainName, DomainNameFault},
    refused::Refused,
    rule::RuleFault,
};

/// Maximum rules in one policy; each flow is checked against all of them.
pub const RULES_MAX: usize = 256;

/// A list of rules.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Policy(Vec<Rule>);

/// The destination of a flow.
#[derive(Clone, Copy, Debug)]
pub struct Destination<'a> {
    /// The address, in its [`canonical`] form.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// The names for which this environment received the address and that have not expired.
    pub names: &'a [DomainName],
    /// Whether the address belongs to the host.
    pub is_hosts_own: bool,
}

impl Policy {
    /// Returns the default policy of a server: the public internet.
    #[must_use]
    pub fn public() -> Self {
        Self(vec![Rule { allows: true, target: Target::Public, ports: None }])
    }

    /// Whether the policy allows nothing.
    #[must_use]
    pub fn is_none(&self) -> bool {
        !self.0.iter().any(|rule| rule.allows)
    }

    fn allows(&self, to: &Destination<'_>) -> bool {
        let decides = self.0.iter().find(|rule| rule.covers(to.port) && rule.matches(to));
        decides.is_some_and(|rule| rule.allows)
    }

    fn allows_some_port(&self, to: &Destination<'_>) -> bool {
        let mut matching = self.0.iter().filter(|rule| rule.matches(to));
        matching.find(|rule| rule.allows || rule.ports.is_none()).is_some_and(|rule| rule.allows)
    }

    fn looks_up(&self, name: &DomainName) -> bool {
        let decides = self.0.iter().find(|rule| match &rule.target {
            Target::Name(pattern) => pattern.matches(name) && (rule.allows || rule.ports.is_none()),
            // Only a lookup can tell whether the name leads to an allowed address.
            Target::Public | Target::Range(_) => rule.allows,
        });
        decides.is_some_and(|rule| rule.allows)
    }
}

impl FromStr for Policy {
    type Err = PolicyFault;

    /// Parses `none`, `public`, or rules separated by commas.
    fn from_str(text: &str) -> Result<Self, PolicyFault> {
        if text.trim() == "none" {
            return Ok(Self::default());
        }
        let rules: Vec<&str> = text.split(',').map(str::trim).filter(|rule| !rule.is_empty()).collect();
        if rules.is_empty() {
            return Err(PolicyFault::Empty);
        }
        if rules.len() > RULES_MAX {
            return Err(PolicyFault::TooMany { rules: rules.len() });
        }
        let read = |rule: &str| rule.parse().map_err(|source| PolicyFault::Rule { rule: shown(rule), source });
        rules.into_iter().map(read).collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (index, rule) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{rule}")?;
        }
        Ok(())
    }
}

/// An invalid policy.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PolicyFault {
    /// An empty policy.
    #[error("must not be empty; must be `none`, `public` for the public internet, or rules separated by commas")]
    Empty,
    /// More rules than the limit.
    #[error("{rules} rules are too many; must be at most {RULES_MAX}")]
    TooMany {
        /// Their number.
        rules: usize,
    },
    /// An invalid rule.
    #[error("invalid rule {rule:?}: {source}")]
    Rule {
        /// The start of the rule.
        rule: String,
        /// The error.
        source: RuleFault,
    },
}

/// Shortens a rule for an error.
fn shown(rule: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 100;
    rule.chars().take(SHOWN_CHARS_MAX).collect()
}

/// The effective policy of one environment: a flow must be allowed by the server's policy and by its own.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Egress {
    server: Policy,
    environment: Option<Policy>,
}

impl Egress {
    /// Combines the server's policy with the environment's own, if it has one.
    #[must_use]
    pub fn new(server: Policy, environment: Option<Policy>) -> Self {
        Self { server, environment }
    }

    /// Returns the policy that allows nothing.
    #[must_use]
    pub fn none() -> Self {
        Self::new(Policy::default(), None)
    }

    /// Whether nothing is allowed, so that the guest needs no network.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.policies().any(Policy::is_none)
    }

    /// Whether a flow is allowed.
    #[must_use]
    pub fn allows(&self, to: &Destination<'_>) -> bool {
        self.policies().all(|policy| policy.allows(to))
    }

    /// Returns one of the destination's names that alone makes the flow allowed. A proxy that looks up names itself is
    /// asked for this name; any other name could lead it to an address that is not allowed.
    #[must_use]
    pub fn allowed_name<'a>(&self, to: &Destination<'a>) -> Option<&'a DomainName> {
        to.names.iter().find(|name| self.allows(&Destination { names: std::slice::from_ref(name), ..*to }))
    }

    /// Whether a flow to some port of the address may be allowed. If not, the guest does not receive the address.
    #[must_use]
    pub fn allows_some_port(&self, to: &Destination<'_>) -> bool {
        self.policies().all(|policy| policy.allows_some_port(to))
    }

    /// Whether a name may be looked up. A lookup itself can carry data out of the guest.
    #[must_use]
    pub fn looks_up(&self, name: &DomainName) -> bool {
        self.policies().all(|policy| policy.looks_up(name))
    }

    fn policies(&self) -> impl Iterator<Item = &Policy> {
        std::iter::once(&self.server).chain(&self.environment)
    }
}

/// The network of one machine: its policy, and the handler of refusals.
#[derive(Clone)]
pub struct Network {
    /// The policy.
    pub egress: Egress,
    /// Called at each refusal; it must not block.
    pub on_refusal: Arc<dyn Fn(&Refused) + Send + Sync>,
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network").field("egress", &self.egress).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
