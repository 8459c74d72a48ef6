// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Buffers the end of a machine's console output, and detects kernel panics in the output.
//!
//! The guest can write any bytes in any amount, so only the last bytes are buffered. Lines for the log are limited in
//! number and length, and their control characters are escaped.

use std::collections::VecDeque;

use waggle_shared::printable;

/// Maximum number of buffered bytes. A kernel panic with its call trace has about 6 KiB.
const KEPT_BYTES_MAX: usize = 16 * 1024;
/// Maximum number of logged lines: about one screen.
const LOGGED_LINES_MAX: usize = 25;
/// Maximum number of lines returned to a caller. A full buffer contains about this many lines.
const SHOWN_LINES_MAX: usize = 200;
/// Maximum length of a line in characters, before escaping. The kernel's lines are shorter.
const SHOWN_LINE_CHARS_MAX: usize = 200;
/// The beginning of Linux's panic message.
const PANIC: &[u8] = b"Kernel panic - not syncing";

/// The end of the console output.
#[derive(Debug, Default)]
pub(super) struct ConsoleTail {
    kept: VecDeque<u8>,
    panic_matched: usize,
    panicked: bool,
}

impl ConsoleTail {
    /// Appends output.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.watch_for_panic(byte);
        }
        let bytes = bytes.get(bytes.len().saturating_sub(KEPT_BYTES_MAX)..).unwrap_or_default();
        let excess = (self.kept.len() + bytes.len()).saturating_sub(KEPT_BYTES_MAX);
        self.kept.drain(..excess);
        self.kept.extend(bytes);
    }

    /// Whether the kernel printed a panic. A hostile guest can fake a panic, which ends only its own machine.
    pub(super) fn panicked(&self) -> bool {
        self.panicked
    }

    /// The last non-blank lines, at most [`LOGGED_LINES_MAX`], escaped.
    pub(super) fn last_lines(&self) -> Vec<String> {
        self.lines_within(LOGGED_LINES_MAX)
    }

    /// The last non-blank lines, at most [`SHOWN_LINES_MAX`], escaped.
    pub(super) fn lines(&self) -> Vec<String> {
        self.lines_within(SHOWN_LINES_MAX)
    }

    fn lines_within(&self, lines_max: usize) -> Vec<String> {
        let bytes: Vec<u8> = self.kept.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let mut lines: Vec<String> =
            text.lines().rev().filter(|line| !line.trim().is_empty()).take(lines_max).map(escaped).collect();
        lines.reverse();
        lines
    }

    // The first letter of `PANIC` occurs only once in `PANIC`, so after a mismatch only the mismatched byte can start
    // a new match.
    fn watch_for_panic(&mut self, byte: u8) {
        let expected = PANIC.get(self.panic_matched).copied();
        self.panic_matched = match expected {
            Some(expected) if expected == byte => self.panic_matched + 1,
            _ => usize::from(PANIC.first() == Some(&byte)),
        };
        self.panicked |= self.panic_matched == PANIC.len();
    }
}

/// Returns the line as it is shown: shortened, with control characters and bidirectional marks escaped.
pub(super) fn escaped(line: &str) -> String {
    let line = line.trim_end();
    let end = line.char_indices().nth(SHOWN_LINE_CHARS_MAX).map_or(line.len(), |(at, _)| at);
    let mut escaped: String = printable::letters(line.get(..end).unwrap_or_default()).collect();
    if end < line.len() {
        escaped.push('…');
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flood_keeps_only_the_last_lines() {
        let mut tail = ConsoleTail::default();
        for number in 0..100_000 {
            tail.push(format!("line {number}\r\n").as_bytes());
        }
        assert!(tail.kept.len() <= KEPT_BYTES_MAX);
        for (lines, lines_max) in [(tail.last_lines(), LOGGED_LINES_MAX), (tail.lines(), SHOWN_LINES_MAX)] {
            assert_eq!(lines.len(), lines_max);
            assert_eq!(lines.last().map(String::as_str), Some("line 99999"));
        }
        tail.push(&vec![b'x'; 3 * KEPT_BYTES_MAX]);
        assert_eq!(tail.kept.len(), KEPT_BYTES_MAX);
    }

    #[test]
    fn panic_is_detected_across_pieces_and_partial_matches() {
        let mut tail = ConsoleTail::default();
        tail.push(b"KKernel pan Kernel panic - not");
        assert!(!tail.panicked());
        tail.push(b" syncing: VFS");
        assert!(tail.panicked());
    }

    #[test]
    fn control_characters_are_escaped_and_long_lines_are_cut() {
        let mut tail = ConsoleTail::default();
        tail.push("\x1b[2Jred\u{202e}\n".as_bytes());
        tail.push(&[0xff, b'\n']);
        tail.push(&vec![b'y'; SHOWN_LINE_CHARS_MAX + 1]);
        let lines = tail.lines();
        assert_eq!(lines[0], "\\u{1b}[2Jred\\u{202e}");
        assert_eq!(lines[1], "\u{fffd}");
        assert_eq!(lines[2], format!("{}…", "y".repeat(SHOWN_LINE_CHARS_MAX)));
    }
}
