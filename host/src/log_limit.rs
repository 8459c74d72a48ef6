// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Limits the log lines that guests and callers cause. Otherwise a guest that breaks every call, or a caller whose
//! environments fail to start, could fill the disk.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{LazyLock, Mutex},
    time::{Duration, Instant},
};

use waggle_shared::mutex::lock;

use crate::domain::{environment_id::EnvironmentId, principal::Principal};

/// Maximum number of lines in a burst: enough to understand one failure.
const LINES_BURST: u32 = 20;

/// The interval at which further lines are allowed.
const LINE_INTERVAL: Duration = Duration::from_secs(30);

/// Maximum number of environments, and of callers with a kind of fault, that have a counter. One more removes those
/// that may write all their lines, or else the half that may write the most.
const COUNTERS_MAX: usize = 4096;

/// The counters of this process, which has one log.
static ENVIRONMENTS: LazyLock<LogLimit<EnvironmentId>> = LazyLock::new(LogLimit::default);
static CALLERS: LazyLock<LogLimit<(Principal, Kind)>> = LazyLock::new(LogLimit::default);

/// A kind of fault, each of which has its own lines, so that one kind does not hide another.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Kind {
    /// An environment that failed to start.
    Start,
    /// A machine that ended by itself, with the end of its console.
    Machine,
    /// An image's agent that does not work.
    Agent,
    /// A failure inside the server.
    Server,
}

/// Returns `None` if this environment must not write a line now. Otherwise, returns the number of lines that were left
/// out since the last line; the new line should state that number.
pub(crate) fn admitted(id: EnvironmentId) -> Option<u64> {
    ENVIRONMENTS.admit(id, Instant::now())
}

/// Returns the same as [`admitted`], for a line about a fault that a caller may cause.
pub(crate) fn admitted_of(caller: &Principal, kind: Kind) -> Option<u64> {
    CALLERS.admit((caller.clone(), kind), Instant::now())
}

/// Removes the counter of an environment that has ended, and logs how many of its lines were left out.
pub(crate) fn end(id: EnvironmentId) {
    let left_out = ENVIRONMENTS.remove(&id);
    if left_out > 0 {
        tracing::warn!(environment = %id, left_out, "lines of this environment were left out of this log");
    }
}

/// Logs how many lines were left out and have not been stated in another line yet.
pub(crate) fn log_left_out() {
    let (of_environments, of_callers) = (ENVIRONMENTS.take_left_out(), CALLERS.take_left_out());
    if of_environments + of_callers > 0 {
        tracing::warn!(of_environments, of_callers, "lines were left out of this log");
    }
}

/// The lines that each source of lines may still write.
#[derive(Debug)]
struct LogLimit<K>(Mutex<Counters<K>>);

#[derive(Debug)]
struct Counters<K> {
    of: HashMap<K, Lines>,
    /// The lines that the sources of removed counters have left out.
    left_out: u64,
}

impl<K> Default for LogLimit<K> {
    fn default() -> Self {
        Self(Mutex::new(Counters { of: HashMap::new(), left_out: 0 }))
    }
}

#[derive(Debug)]
struct Lines {
    left: u32,
    earned_at: Instant,
    left_out: u64,
}

impl Lines {
    fn earn(&mut self, now: Instant) {
        let intervals = now.saturating_duration_since(self.earned_at).as_secs() / LINE_INTERVAL.as_secs();
        let earned = u32::try_from(intervals).unwrap_or(u32::MAX);
        if earned > 0 {
            self.left = self.left.saturating_add(earned).min(LINES_BURST);
            self.earned_at = now;
        }
    }
}

impl<K: Eq + Hash> Counters<K> {
    /// Removes the counters of the quietest sources: those that may write all their lines, or else half of all.
    fn make_room(&mut self, now: Instant) {
        self.of.values_mut().for_each(|lines| lines.earn(now));
        self.remove_quiet(LINES_BURST, usize::MAX);
        if self.of.len() >= COUNTERS_MAX {
            let mut left: Vec<_> = self.of.values().map(|lines| lines.left).collect();
            left.sort_unstable();
            let median = left.get(left.len() / 2).copied().unwrap_or_default();
            self.remove_quiet(median + 1, usize::MAX);
            self.remove_quiet(median, self.of.len().saturating_sub(COUNTERS_MAX / 2));
        }
    }

    /// Removes the counters of at most `count` sources that may write at least `left` lines.
    fn remove_quiet(&mut self, left: u32, count: usize) {
        let removed = self.of.extract_if(|_, lines| lines.left >= left).take(count);
        self.left_out += removed.map(|(_, lines)| lines.left_out).sum::<u64>();
    }
}

impl<K: Eq + Hash> LogLimit<K> {
    fn admit(&self, key: K, now: Instant) -> Option<u64> {
        let mut counters = lock(&self.0);
        if counters.of.len() >= COUNTERS_MAX && !counters.of.contains_key(&key) {
            counters.make_room(now);
        }
        let lines = counters.of.entry(key).or_insert(Lines { left: LINES_BURST, earned_at: now, left_out: 0 });
        lines.earn(now);
        match lines.left.checked_sub(1) {
            Some(left) => {
                lines.left = left;
                Some(std::mem::take(&mut lines.left_out))
            }
            None => {
                lines.left_out += 1;
                None
            }
        }
    }

    fn take_left_out(&self) -> u64 {
        let mut counters = lock(&self.0);
        let removed = std::mem::take(&mut counters.left_out);
        removed + counters.of.values_mut().map(|lines| std::mem::take(&mut lines.left_out)).sum::<u64>()
    }

    /// Removes a counter, and returns the number of lines that were left out and have not been stated yet.
    fn remove(&self, key: &K) -> u64 {
        lock(&self.0).of.remove(key).map_or(0, |lines| lines.left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_lines_of_one_environment_are_limited_and_counted() {
        let limit = LogLimit::default();
        let (noisy, calm, start) = (EnvironmentId::random(), EnvironmentId::random(), Instant::now());
        let admitted: Vec<_> = (0..1000).filter_map(|_| limit.admit(noisy, start)).collect();
        assert_eq!(admitted, [0; 20]);
        assert_eq!(limit.admit(calm, start), Some(0), "another environment has its own lines");
        let later = start + Duration::from_secs(61);
        assert_eq!([(); 3].map(|()| limit.admit(noisy, later)), [Some(980), Some(0), None]);
    }

    #[test]
    fn lines_of_callers_are_limited_by_kind_and_the_rest_is_counted() {
        let [ada, bob] = ["ada", "bob"].map(|name| name.parse::<Principal>().unwrap());
        let (limit, now) = (LogLimit::default(), Instant::now());
        let written =
            |caller: &Principal, kind| (0..100).filter_map(|_| limit.admit((caller.clone(), kind), now)).count();
        assert_eq!([written(&ada, Kind::Start), written(&ada, Kind::Start)], [20, 0]);
        assert_eq!([written(&ada, Kind::Machine), written(&bob, Kind::Start)], [20, 20]);
        assert_eq!([limit.take_left_out(), limit.take_left_out()], [100 + 3 * 80, 0]);
    }

    #[test]
    fn number_of_counters_is_limited_and_noisy_ones_stay() {
        let (limit, start) = (LogLimit::default(), Instant::now());
        while limit.admit(0, start).is_some() {}
        let later = start + Duration::from_secs(29);
        for number in 1..2 * COUNTERS_MAX {
            limit.admit(number, start);
            assert!(lock(&limit.0).of.len() <= COUNTERS_MAX);
            if number % 1000 == 0 {
                let _ = limit.admit(number, later);
            }
        }
        let (limit, hour) = (LogLimit::default(), start + Duration::from_secs(3600));
        for number in 0..COUNTERS_MAX {
            limit.admit(number, start);
        }
        while limit.admit(0, hour).is_some() {}
        limit.admit(COUNTERS_MAX, hour);
        assert_eq!(limit.admit(0, hour), None, "a caller without lines keeps its counter");
        assert_eq!(lock(&limit.0).of.len(), 2);
    }

    #[test]
    fn counts_survive_the_removal_of_counters_and_noisy_sources_get_no_new_burst() {
        let (limit, start) = (LogLimit::default(), Instant::now());
        // Half of the sources have left a line out, and the other half have written one.
        for number in 0..COUNTERS_MAX {
            for _ in 0..=LINES_BURST * u32::from(number % 2 == 0) {
                limit.admit(number, start);
            }
        }
        limit.admit(COUNTERS_MAX, start);
        assert_eq!(limit.admit(0, start), None, "a noisy source keeps its counter");
        assert!(lock(&limit.0).of.len() <= COUNTERS_MAX / 2 + 1);
        // All sources are noisy now.
        for number in 0..2 * COUNTERS_MAX {
            while limit.admit(number, start).is_some() {}
        }
        assert!(lock(&limit.0).of.len() > COUNTERS_MAX / 2, "only half of the counters are removed");
        // Each source has left out at least one line.
        assert!(limit.take_left_out() >= 2 * COUNTERS_MAX as u64);
    }

    #[test]
    fn end_of_an_environment_removes_its_counter_and_returns_its_count() {
        let (limit, id, now) = (LogLimit::default(), EnvironmentId::random(), Instant::now());
        for _ in 0..100 {
            limit.admit(id, now);
        }
        assert_eq!([limit.remove(&id), limit.remove(&id)], [80, 0]);
        assert_eq!((limit.take_left_out(), lock(&limit.0).of.len()), (0, 0));
    }
}
