// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Network policies of the server and of environments: the destinations that guests may reach.
//!
//! A policy is a list of rules. The first rule that matches decides; without a match the destination is denied. Guests
//! connect to addresses, but a rule may contain a name. The host therefore remembers the names for which an environment
//! received an address; see [`Granted`].

mod granted;
mod name;
mod name_rules;
mod refused;
mod refused_names;
mod reverse;
mod rule;

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::{fmt, str::FromStr, sync::Arc};

pub use self::{
    granted::{ANSWER_TTL_S, Granted},
    name::{DomainName, DomainNameFault},
    name_rules::NameRules,
    refused::Refused,
    refused_names::RefusedNames,
    reverse::Reverse,
    rule::RuleFault,
};
use self::{
    name_rules::RuleSet,
    rule::{Rule, Target},
};

/// Maximum number of rules in one policy. A flow may be compared with all of them.
pub const RULES_MAX: usize = 256;

/// The addresses of the host's loopback that guests can reach, in the order in which the host tries them.
pub const LOOPBACKS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// A list of rules; the first rule that matches decides.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Policy(Vec<Rule>);

/// The destination of a flow.
#[derive(Clone, Copy, Debug)]
pub struct Destination {
    /// The address, in its [`canonical`](waggle_shared::address::canonical) form.
    pub address: IpAddr,
    pub port: u16,
    /// The rules that match the unexpired names for which the environment received the address.
    pub name_rules: NameRules,
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

    /// Returns whether the first matching rule allows the flow, or `None` if no rule matches. `names` are the rules
    /// that match a name of the destination.
    fn decision(&self, to: &Destination, names: RuleSet) -> Option<bool> {
        self.matching(to).decision(names)
    }

    /// Returns the rules that match the destination, depending on its names.
    fn matching(&self, to: &Destination) -> Matching<'_> {
        let covering = || self.0.iter().enumerate().filter(|(_, rule)| rule.covers(to.port));
        let positions = |is_named| covering().filter(move |(_, rule)| rule.matches(to, is_named)).map(|(at, _)| at);
        Matching { policy: self, unnamed: positions(false).collect(), named: positions(true).collect() }
    }

    /// Whether a flow may lead to the second of the [`LOOPBACKS`]. A rule that allows either of them is enough, and a
    /// rule that denies either of them denies this one.
    fn allows_second_loopback(&self, to: &[Destination; 2], names: RuleSet) -> bool {
        let decisions = to.each_ref().map(|to| self.decision(to, names));
        decisions.contains(&Some(true)) && !decisions.contains(&Some(false))
    }

    fn allows_some_port(&self, to: &Destination, names: RuleSet) -> bool {
        let matches = |(at, rule): &(usize, &Rule)| rule.matches(to, names.contains(*at));
        let mut matching = self.0.iter().enumerate().filter(matches).map(|(_, rule)| rule);
        matching.find(|rule| rule.allows || rule.ports.is_none()).is_some_and(|rule| rule.allows)
    }

    /// Returns the rules whose pattern matches the name.
    fn name_rules(&self, name: &DomainName) -> RuleSet {
        let matches = |rule: &Rule| matches!(&rule.target, Target::Name(pattern) if pattern.matches(name));
        self.0.iter().enumerate().filter(|(_, rule)| matches(rule)).map(|(at, _)| at).collect()
    }

    /// Returns whether the first rule that decides about the lookup of a name allows it, or `None` if no rule decides.
    /// The `names` are the name itself and the name that it describes.
    fn name_decision(&self, names: &[&DomainName]) -> Option<bool> {
        let decides = self.0.iter().find(|rule| match &rule.target {
            Target::Name(pattern) => {
                names.iter().any(|name| pattern.matches(name)) && (rule.allows || rule.ports.is_none())
            }
            // Only a lookup can tell whether the name resolves to an address that the rule covers.
            Target::Public | Target::Range(_) => rule.allows,
        });
        decides.map(|rule| rule.allows)
    }
}

/// The rules of a policy that match a destination.
struct Matching<'a> {
    policy: &'a Policy,
    /// The rules that match regardless of the destination's names.
    unnamed: RuleSet,
    /// The rules that match a destination that has a name for each of them.
    named: RuleSet,
}

impl Matching<'_> {
    /// Returns whether the first rule that matches allows a destination with these names.
    fn decision(&self, names: RuleSet) -> Option<bool> {
        let first = self.unnamed.union(self.named.intersection(names)).first();
        first.and_then(|at| self.policy.0.get(at)).map(|rule| rule.allows)
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
    #[error("must not be empty; must be `none`, `public` for the public internet, or rules separated by commas")]
    Empty,
    #[error("{rules} rules are too many; must be at most {RULES_MAX}")]
    TooMany { rules: usize },
    #[error("invalid rule {rule:?}: {source}")]
    Rule {
        /// The rule, shortened.
        rule: String,
        source: RuleFault,
    },
}

/// Shortens a rule for an error message.
fn shown(rule: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 100;
    rule.chars().take(SHOWN_CHARS_MAX).collect()
}

/// The effective policy of one environment: both the server's policy and the environment's own must allow a flow.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Egress {
    server: Policy,
    environment: Option<Policy>,
}

impl Egress {
    /// Combines the server's policy with the environment's own policy, if there is one.
    #[must_use]
    pub fn new(server: Policy, environment: Option<Policy>) -> Self {
        Self { server, environment }
    }

    /// Returns the policy that allows nothing.
    #[must_use]
    pub fn none() -> Self {
        Self::new(Policy::default(), None)
    }

    /// Whether the policy allows nothing. The guest then needs no network.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.policies().any(Policy::is_none)
    }

    /// Returns the rules that match the name.
    #[must_use]
    pub fn name_rules(&self, name: &DomainName) -> NameRules {
        let environment = self.environment.as_ref().map(|policy| policy.name_rules(name)).unwrap_or_default();
        NameRules { server: self.server.name_rules(name), environment }
    }

    /// Whether a flow is allowed.
    #[must_use]
    pub fn allows(&self, to: &Destination) -> bool {
        self.policies_with(to.name_rules).all(|(policy, names)| policy.decision(to, names) == Some(true))
    }

    /// Returns the addresses of the host's loopback that a flow may lead to, in the order in which the host tries them.
    /// A server on the host may listen on one of them only, and a rule need not say on which.
    #[must_use]
    pub fn loopbacks(&self, port: u16, name_rules: NameRules) -> Vec<IpAddr> {
        let to = LOOPBACKS.map(|address| Destination { address, port, name_rules, is_hosts_own: true });
        let second = |(policy, names): (&Policy, RuleSet)| policy.allows_second_loopback(&to, names);
        let [v4, v6] = &to;
        let allowed = [self.allows(v4), self.policies_with(name_rules).all(second)];
        [v4, v6].into_iter().zip(allowed).filter_map(|(to, allowed)| allowed.then_some(to.address)).collect()
    }

    /// Returns the first of the names that by itself allows the flow. An upstream proxy that resolves names itself gets
    /// this name, because another name could resolve to an address that is not allowed.
    pub fn allowed_name<'a>(
        &self,
        to: &Destination,
        mut names: impl Iterator<Item = (&'a DomainName, NameRules)>,
    ) -> Option<&'a DomainName> {
        let server = self.server.matching(to);
        let environment = self.environment.as_ref().map(|policy| policy.matching(to));
        let allows = |(_, rules): &(&DomainName, NameRules)| {
            let narrowed = environment.as_ref().is_none_or(|own| own.decision(rules.environment) == Some(true));
            narrowed && server.decision(rules.server) == Some(true)
        };
        names.find(allows).map(|(name, _)| name)
    }

    /// Whether a flow to at least one port of the address may be allowed. If not, DNS answers to the guest omit the
    /// address.
    #[must_use]
    pub fn allows_some_port(&self, to: &Destination) -> bool {
        self.policies_with(to.name_rules).all(|(policy, names)| policy.allows_some_port(to, names))
    }

    /// Whether a name may be looked up. Lookups are restricted because a lookup itself can carry data out of the guest.
    #[must_use]
    pub fn looks_up(&self, name: &DomainName) -> bool {
        self.policies().all(|policy| policy.name_decision(&[name]) == Some(true))
    }

    /// Whether records other than addresses may be looked up. A rule for a name also covers the names of its services,
    /// such as `_sip._tcp` before the name: they are a part of what the name's owner publishes about the name.
    #[must_use]
    pub fn looks_up_records(&self, name: &DomainName) -> bool {
        let described = name.without_service();
        let names: Vec<_> = std::iter::once(name).chain(&described).collect();
        self.policies().all(|policy| policy.name_decision(&names) == Some(true))
    }

    /// Whether a rule denies lookups of the name. Of a name that no rule covers, a guest may still get the records if
    /// an alias leads there, because sites are often aliases of names of their hosting providers.
    #[must_use]
    pub fn denies_name(&self, name: &DomainName) -> bool {
        let described = name.without_service();
        let names: Vec<_> = std::iter::once(name).chain(&described).collect();
        self.policies().any(|policy| policy.name_decision(&names) == Some(false))
    }

    fn policies(&self) -> impl Iterator<Item = &Policy> {
        std::iter::once(&self.server).chain(&self.environment)
    }

    /// Returns each policy with its part of the rules that match some names.
    fn policies_with(&self, rules: NameRules) -> impl Iterator<Item = (&Policy, RuleSet)> {
        self.policies().zip([rules.server, rules.environment])
    }
}

/// The network of one machine: its policy, and the handler of refusals.
#[derive(Clone)]
pub struct Network {
    pub egress: Egress,
    /// Called at each refusal; must not block.
    pub on_refusal: Arc<dyn Fn(&Refused) + Send + Sync>,
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network").field("egress", &self.egress).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
