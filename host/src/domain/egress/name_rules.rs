// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Sets of the rules that match a name. The host compares each name with the rules once, when it looks the name up. So
//! a flow to an address with a thousand names needs no comparisons of texts.

use super::RULES_MAX;

const WORD_BITS: usize = u64::BITS as usize;

/// The rules of one policy, by their positions.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct RuleSet([u64; RULES_MAX / WORD_BITS]);

impl RuleSet {
    pub(super) fn contains(&self, position: usize) -> bool {
        self.0.get(position / WORD_BITS).is_some_and(|word| word >> (position % WORD_BITS) & 1 == 1)
    }

    /// Returns the position of the first rule.
    pub(super) fn first(&self) -> Option<usize> {
        let (index, word) = self.0.iter().enumerate().find(|(_, word)| **word != 0)?;
        Some(index * WORD_BITS + usize::try_from(word.trailing_zeros()).ok()?)
    }

    pub(super) fn union(self, other: Self) -> Self {
        self.merge(other, |one, other| one | other)
    }

    pub(super) fn intersection(self, other: Self) -> Self {
        self.merge(other, |one, other| one & other)
    }

    fn merge(mut self, other: Self, merge: impl Fn(u64, u64) -> u64) -> Self {
        self.0.iter_mut().zip(other.0).for_each(|(word, other)| *word = merge(*word, other));
        self
    }
}

impl FromIterator<usize> for RuleSet {
    /// Collects positions; ignores those that no rule can have.
    fn from_iter<I: IntoIterator<Item = usize>>(positions: I) -> Self {
        let mut set = Self::default();
        for position in positions {
            if let Some(word) = set.0.get_mut(position / WORD_BITS) {
                *word |= 1 << (position % WORD_BITS);
            }
        }
        set
    }
}

/// The rules of an environment's policies that match one name, or any of several names.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct NameRules {
    pub(super) server: RuleSet,
    pub(super) environment: RuleSet,
}

impl FromIterator<NameRules> for NameRules {
    /// Returns the rules that match any of the names.
    fn from_iter<I: IntoIterator<Item = Self>>(names: I) -> Self {
        names.into_iter().fold(Self::default(), |all, one| Self {
            server: all.server.union(one.server),
            environment: all.environment.union(one.environment),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_hold_all_positions_of_rules() {
        let all: RuleSet = (0..RULES_MAX).collect();
        assert!((0..RULES_MAX).all(|position| all.contains(position)) && !all.contains(RULES_MAX));
        for position in [0, 63, 64, 255] {
            let one: RuleSet = [position, position + RULES_MAX].into_iter().collect();
            assert_eq!((one.first(), one.contains(position)), (Some(position), true));
            assert_eq!((all.intersection(one), all.union(one)), (one, all));
        }
        assert_eq!(RuleSet::default().first(), None);
    }
}
