// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Logs the output of a machine's programs line by line, if the operator has enabled this log.
//!
//! A guest can influence this output, so lines are shortened and escaped, and their rate is limited.

use std::time::{Duration, Instant};

use super::console;

/// Maximum number of logged lines per machine and interval. A person could not read more lines.
const LINES_MAX: u32 = 50;
const INTERVAL: Duration = Duration::from_secs(1);
/// Maximum number of buffered bytes per line. The rest of a longer line is dropped.
const LINE_BYTES_MAX: usize = 1024;

/// Splits output into lines and logs them.
#[derive(Debug, Default)]
pub(super) struct LiveLog {
    line: Vec<u8>,
    interval_start: Option<Instant>,
    lines: u32,
}

impl LiveLog {
    /// Appends output, and logs complete lines within the limits.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' {
                let line = std::mem::take(&mut self.line);
                if self.is_within_limit(Instant::now()) {
                    let line = console::escaped(&String::from_utf8_lossy(&line));
                    tracing::info!(line, "output of a machine's programs");
                }
            } else if self.line.len() < LINE_BYTES_MAX {
                self.line.push(byte);
            }
        }
    }

    fn is_within_limit(&mut self, now: Instant) -> bool {
        if self.interval_start.is_none_or(|start| now.duration_since(start) >= INTERVAL) {
            if self.lines > LINES_MAX {
                tracing::warn!(lines = self.lines - LINES_MAX, "dropped output of a machine's programs");
            }
            (self.interval_start, self.lines) = (Some(now), 0);
        }
        self.lines = self.lines.saturating_add(1);
        self.lines <= LINES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flood_is_limited_until_the_next_interval() {
        let (mut log, start) = (LiveLog::default(), Instant::now());
        assert_eq!((0..1000).filter(|_| log.is_within_limit(start)).count(), 50);
        assert!(log.is_within_limit(start + INTERVAL));
        log.push(&[b'x'; 100_000]);
        assert_eq!(log.line.len(), LINE_BYTES_MAX);
    }
}
