// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Whether the kernel has killed something for want of memory: the count that the runner's control group keeps.
//!
//! A machine that grows beyond the group's limit is killed with the same signal that anybody may send; the count tells
//! the two apart. Other machines in the group count as well, so the answer is about the group.

use std::{fs, path::PathBuf};

use crate::machines::control_group;

/// The count as it was.
pub(super) struct KillCount {
    events: Option<PathBuf>,
    before: u64,
}

impl KillCount {
    /// Reads it.
    pub(super) fn now() -> Self {
        let events = control_group::own().map(|group| group.join("memory.events"));
        let before = events.as_ref().and_then(|path| fs::read_to_string(path).ok()).map_or(0, |text| count(&text));
        Self { events, before }
    }

    /// Whether it has grown.
    pub(super) fn has_grown(&self) -> bool {
        let now = self.events.as_ref().and_then(|path| fs::read_to_string(path).ok());
        now.is_some_and(|text| count(&text) > self.before)
    }
}

fn count(events: &str) -> u64 {
    let counts = events.lines().filter_map(|line| line.strip_prefix("oom_kill "));
    counts.filter_map(|count| count.trim().parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn only_kills_are_counted() {
        assert_eq!(count("low 0\nhigh 5\nmax 19\noom 2\noom_kill 3\noom_group_kill 7\n"), 3);
        assert_eq!(count(""), 0);
    }
}
