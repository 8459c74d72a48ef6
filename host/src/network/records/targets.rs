// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The names that a response leads to by aliases, which the owner of the question's name chooses.

use std::collections::HashSet;

use super::{
    super::dns::{Question, read_name},
    RelayFault,
};
use crate::domain::egress::{DomainName, Reverse};

/// Maximum number of different names in an answer. Name servers follow about a dozen aliases.
pub(super) const TARGETS_MAX: usize = 64;

/// A name that a response leads to, and whose records it contains.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Target {
    /// The name, or `None` if it is not a valid host name.
    pub name: Option<DomainName>,
    /// Whether the question is the name of an address, and the target belongs to the same zone: it is below the parent
    /// of the question, where the names of a part of a network are (RFC 2317), or it is itself a parent.
    pub shares_reverse_zone: bool,
}

/// Returns whether a guest may get the records of a target.
pub type MayLeadTo<'a> = dyn Fn(&Target) -> bool + Sync + 'a;

/// The targets of one response that were checked so far.
pub(super) struct Targets<'a> {
    question: &'a [u8],
    is_reverse: bool,
    may_lead_to: &'a MayLeadTo<'a>,
    /// The allowed names in their wire format, in lower case.
    allowed: HashSet<Vec<u8>>,
}

impl<'a> Targets<'a> {
    pub(super) fn new(question: &'a Question, may_lead_to: &'a MayLeadTo<'a>) -> Self {
        let is_reverse = question.name.as_ref().is_some_and(|name| matches!(name.reverse(), Reverse::Of(_)));
        let (question, _) = question.parts();
        Self { question, is_reverse, may_lead_to, allowed: HashSet::from([question.to_ascii_lowercase()]) }
    }

    /// Fails if the guest may not get the records of this name, which is in the wire format without compression.
    pub(super) fn check(&mut self, wire: &[u8]) -> Result<(), RelayFault> {
        let wire = wire.to_ascii_lowercase();
        if self.allowed.contains(&wire) {
            return Ok(());
        }
        if self.allowed.len() > TARGETS_MAX {
            return Err(RelayFault::Invalid);
        }
        let target = Target { name: read_name(&wire), shares_reverse_zone: self.is_reverse && self.shares_zone(&wire) };
        if !(self.may_lead_to)(&target) {
            return Err(RelayFault::Denied);
        }
        self.allowed.insert(wire);
        Ok(())
    }

    fn shares_zone(&self, wire: &[u8]) -> bool {
        let is_below_parent = parents(self.question).next().is_some_and(|parent| is_below(wire, parent));
        is_below_parent || is_below(self.question, wire)
    }
}

/// Returns the parents of a name in the wire format, except the root.
fn parents(wire: &[u8]) -> impl Iterator<Item = &[u8]> {
    let parent = |name: &[u8]| Some(1 + usize::from(*name.first()?));
    std::iter::successors(Some(wire), move |name| name.get(parent(name)?..)).skip(1).take_while(|name| name.len() > 1)
}

fn is_below(wire: &[u8], zone: &[u8]) -> bool {
    parents(wire).any(|parent| parent.eq_ignore_ascii_case(zone))
}
