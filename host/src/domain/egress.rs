// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Which destinations outside the guests are allowed: the server's policy, and within it an environment's own.
//!
//! A policy is a list of rules. The first that matches decides; where none does, the answer is no. A guest dials
//! addresses; what it was told about names is the host's own knowledge of what it gave to this very environment, see
//! [`Granted`].

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

/// Rules in one policy; each flow is held against all of them.
pub const RULES_MAX: usize = 256;

/// A list of rules; see the module.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Policy(Vec<Rule>);

/// Where a guest wants to go.
#[derive(Clone, Copy, Debug)]
pub struct Destination<'a> {
    /// The address, in its [`canonical`] form.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// The names under which this environment was given the address, and may still use it.
    pub names: &'a [DomainName],
    /// Whether the address is one of the host's own.
    pub is_hosts_own: bool,
}

impl Policy {
    /// What a server has that was told nothing else: the public internet.
    #[must_use]
    pub fn public() -> Self {
        Self(vec![Rule { allows: true, target: Target::Public, ports: None }])
    }

    /// Whether it allows nothing at all.
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
            // A name has to be looked up to know whether it leads there.
            Target::Public | Target::Range(_) => rule.allows,
        });
        decides.is_some_and(|rule| rule.allows)
    }
}

impl FromStr for Policy {
    type Err = PolicyFault;

    /// Reads `none`, `public`, or rules separated by commas.
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

/// A text is no policy.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PolicyFault {
    /// Nothing in it.
    #[error("it is empty; write `none` for no network, `public` for the public internet, or rules separated by commas")]
    Empty,
    /// More rules than are held against each flow.
    #[error("it has {rules} rules; at most {RULES_MAX} are allowed")]
    TooMany {
        /// How many.
        rules: usize,
    },
    /// One of them is none.
    #[error("{rule:?} is no rule: {source}")]
    Rule {
        /// Its beginning.
        rule: String,
        /// What is wrong.
        source: RuleFault,
    },
}

/// A rule as an error repeats it: not without end.
fn shown(rule: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 100;
    rule.chars().take(SHOWN_CHARS_MAX).collect()
}

/// What one environment may reach: what the server's policy and its own both allow.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Egress {
    server: Policy,
    environment: Option<Policy>,
}

impl Egress {
    /// The two together; an environment without a policy of its own has the server's.
    #[must_use]
    pub fn new(server: Policy, environment: Option<Policy>) -> Self {
        Self { server, environment }
    }

    /// Nothing at all.
    #[must_use]
    pub fn none() -> Self {
        Self::new(Policy::default(), None)
    }

    /// Whether nothing can be reached, so that the guest needs no network.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.policies().any(Policy::is_none)
    }

    /// Whether a flow may go there.
    #[must_use]
    pub fn allows(&self, to: &Destination<'_>) -> bool {
        self.policies().all(|policy| policy.allows(to))
    }

    /// The name, of those that the address was given under, that is enough for the flow to go there: what somebody may
    /// be asked for who looks names up himself. Under another one he might come to a place that is not allowed.
    #[must_use]
    pub fn allowed_name<'a>(&self, to: &Destination<'a>) -> Option<&'a DomainName> {
        to.names.iter().find(|name| self.allows(&Destination { names: std::slice::from_ref(name), ..*to }))
    }

    /// Whether there may be a port on which a flow may go there; what fails this is not told to the guest.
    #[must_use]
    pub fn allows_some_port(&self, to: &Destination<'_>) -> bool {
        self.policies().all(|policy| policy.allows_some_port(to))
    }

    /// Whether a name may be looked up at all: a question is itself a way out.
    #[must_use]
    pub fn looks_up(&self, name: &DomainName) -> bool {
        self.policies().all(|policy| policy.looks_up(name))
    }

    fn policies(&self) -> impl Iterator<Item = &Policy> {
        std::iter::once(&self.server).chain(&self.environment)
    }
}

/// The network of one machine: what it may reach, and who hears of what it may not.
#[derive(Clone)]
pub struct Network {
    /// What it may reach.
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
