// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Detects that the kernel killed a process because memory ran out, by a counter of the runner's control group.
//!
//! If a machine exceeds the group's memory limit, the kernel sends SIGKILL and increments the counter. A SIGKILL from
//! another process does not change the counter. Machines of the same group share the counter, so another machine may
//! have caused an increment.

use std::{fs, path::PathBuf};

use crate::machines::control_group;

/// The value of the counter at the time of a call to [`OomKills::now`].
pub(super) struct OomKills {
    events: Option<PathBuf>,
    before: u64,
}

impl OomKills {
    pub(super) fn now() -> Self {
        let events = control_group::own().map(|group| group.join("memory.events"));
        let before = events.as_ref().and_then(|path| fs::read_to_string(path).ok()).map_or(0, |text| count(&text));
        Self { events, before }
    }

    /// Whether the counter has grown since the call to [`OomKills::now`].
    pub(super) fn have_grown(&self) -> bool {
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
    fn counts_only_the_kills_of_processes() {
        assert_eq!(count("low 0\nhigh 5\nmax 19\noom 2\noom_kill 3\noom_group_kill 7\n"), 3);
        assert_eq!(count(""), 0);
    }
}
