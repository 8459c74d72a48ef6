// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What the programs of a machine print, line by line in the log, where the operator wants to see it.
//!
//! A guest can make them print: lines are cut and escaped, and of each second only the first are shown.

use std::time::{Duration, Instant};

use super::console;

/// Lines of one machine that a second shows; a person reads fewer.
const LINES_MAX: u32 = 50;
/// What "a second" is here.
const INTERVAL: Duration = Duration::from_secs(1);
/// Bytes of a line that are kept while its end has not come.
const LINE_BYTES_MAX: usize = 1024;

/// Takes what is printed and logs it.
#[derive(Debug, Default)]
pub(super) struct LiveLog {
    line: Vec<u8>,
    since: Option<Instant>,
    shown: u32,
}

impl LiveLog {
    /// Takes the next bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' {
                let line = std::mem::take(&mut self.line);
                if self.may_show(Instant::now()) {
                    let line = console::shown(&String::from_utf8_lossy(&line));
                    tracing::info!(line, "a machine's programs say");
                }
            } else if self.line.len() < LINE_BYTES_MAX {
                self.line.push(byte);
            }
        }
    }

    fn may_show(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.duration_since(since) >= INTERVAL) {
            if self.shown > LINES_MAX {
                tracing::warn!(lines = self.shown - LINES_MAX, "more was said than is shown");
            }
            (self.since, self.shown) = (Some(now), 0);
        }
        self.shown = self.shown.saturating_add(1);
        self.shown <= LINES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_shown_in_part_and_again_a_second_later() {
        let (mut log, start) = (LiveLog::default(), Instant::now());
        assert_eq!((0..1000).filter(|_| log.may_show(start)).count(), 50);
        assert!(log.may_show(start + INTERVAL));
        log.push(&[b'x'; 100_000]);
        assert_eq!(log.line.len(), LINE_BYTES_MAX);
    }
}
