// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The names of recently refused lookups, so that the lookups of one program count once.
//!
//! A program that connects to a name mostly makes two lookups at once, one for each family of addresses, and some make
//! more. To a reader of the counters and the log, that is one refusal.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::DomainName;

/// The time in which further lookups of a refused name do not count.
const COUNTED_ONCE: Duration = Duration::from_secs(1);

/// Maximum number of names that are remembered. Programs rarely look up more names at once.
const NAMES_MAX: usize = 16;

/// The latest refused names, oldest first.
#[derive(Debug, Default)]
pub struct RefusedNames(VecDeque<(DomainName, Instant)>);

impl RefusedNames {
    /// Whether the refusal of a name counts: the name was not refused a moment before.
    pub fn is_new(&mut self, name: &DomainName, now: Instant) -> bool {
        self.0.retain(|(_, since)| now.saturating_duration_since(*since) < COUNTED_ONCE);
        if self.0.iter().any(|(known, _)| known == name) {
            return false;
        }
        if self.0.len() >= NAMES_MAX {
            self.0.pop_front();
        }
        self.0.push_back((name.clone(), now));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DomainName {
        text.parse().unwrap()
    }

    #[test]
    fn lookups_of_one_name_within_a_second_count_once() {
        let (mut refused, start) = (RefusedNames::default(), Instant::now());
        let mut is_new = |text, after_ms| refused.is_new(&name(text), start + Duration::from_millis(after_ms));
        assert_eq!([is_new("a.example", 0), is_new("b.example", 0), is_new("a.example", 1)], [true, true, false]);
        assert_eq!([is_new("b.example", 999), is_new("a.example", 1000)], [false, true]);
    }

    #[test]
    fn remembered_names_are_limited() {
        let (mut refused, now) = (RefusedNames::default(), Instant::now());
        for number in 0..10_000 {
            assert!(refused.is_new(&name(&format!("n{number}.example")), now));
        }
        assert_eq!(refused.0.len(), NAMES_MAX);
    }
}
