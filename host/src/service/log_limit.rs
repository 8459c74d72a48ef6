// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Limits the log lines of each environment. Otherwise a guest that breaks every call could fill the disk.

use std::{
    collections::HashMap,
    sync::{LazyLock, Mutex},
    time::{Duration, Instant},
};

use waggle_shared::mutex::lock;

use crate::domain::environment_id::EnvironmentId;

/// Maximum number of lines in a burst: enough to understand one failure.
const LINES_BURST: u32 = 20;

/// The interval at which further lines are allowed.
const LINE_INTERVAL: Duration = Duration::from_secs(30);

/// Maximum number of environments with a counter. One more environment resets all counters, so the limit must not be
/// below a server's capacity.
const ENVIRONMENTS_MAX: usize = 1024;

/// The counters of this process, which has one log.
static LINES: LazyLock<LogLimit> = LazyLock::new(LogLimit::default);

/// Returns `None` if this environment must not write a line now. Otherwise, returns the number of lines that were left
/// out since the last line; the new line should state that number.
pub(crate) fn admitted(id: EnvironmentId) -> Option<u64> {
    LINES.admit(id, Instant::now())
}

/// The lines that each environment may still write.
#[derive(Debug, Default)]
struct LogLimit(Mutex<HashMap<EnvironmentId, Lines>>);

#[derive(Debug)]
struct Lines {
    left: u32,
    earned_at: Instant,
    left_out: u64,
}

impl LogLimit {
    fn admit(&self, id: EnvironmentId, now: Instant) -> Option<u64> {
        let mut environments = lock(&self.0);
        if environments.len() >= ENVIRONMENTS_MAX && !environments.contains_key(&id) {
            environments.clear();
        }
        let new = Lines { left: LINES_BURST, earned_at: now, left_out: 0 };
        let lines = environments.entry(id).or_insert(new);
        let intervals = now.saturating_duration_since(lines.earned_at).as_secs() / LINE_INTERVAL.as_secs();
        let earned = u32::try_from(intervals).unwrap_or(u32::MAX);
        if earned > 0 {
            lines.left = lines.left.saturating_add(earned).min(LINES_BURST);
            lines.earned_at = now;
        }
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
}
