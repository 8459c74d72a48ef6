// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The last of what a machine printed on its serial console, and whether its kernel panicked.
//!
//! The guest writes whatever it likes, as much as it likes: only the last bytes are kept, and what goes to the log is
//! capped in lines and in length, with every control character escaped.

use std::collections::VecDeque;

use crate::printable;

/// Bytes kept; a kernel panic with its call trace takes about 6 KiB.
const KEPT_BYTES_MAX: usize = 16 * 1024;
/// Lines shown where the log has them; the screenful that a person reads.
const LOGGED_LINES_MAX: usize = 25;
/// Lines shown to whoever asks for all; what is kept holds as many kernel lines.
const SHOWN_LINES_MAX: usize = 200;
/// Characters of a line shown; kernel lines stay below it.
const SHOWN_LINE_CHARS_MAX: usize = 200;
/// What Linux prints first when it gives up.
const PANIC: &[u8] = b"Kernel panic - not syncing";

/// Takes what the console prints and keeps its end.
#[derive(Debug, Default)]
pub(super) struct ConsoleTail {
    kept: VecDeque<u8>,
    panic_matched: usize,
    panicked: bool,
}

impl ConsoleTail {
    /// Takes the next bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.watch_for_panic(byte);
        }
        let bytes = bytes.get(bytes.len().saturating_sub(KEPT_BYTES_MAX)..).unwrap_or_default();
        let excess = (self.kept.len() + bytes.len()).saturating_sub(KEPT_BYTES_MAX);
        self.kept.drain(..excess);
        self.kept.extend(bytes);
    }

    /// Whether the kernel has said that it panicked. A hostile guest can say so as well; it only harms itself.
    pub(super) fn panicked(&self) -> bool {
        self.panicked
    }

    /// The last lines, safe to log.
    pub(super) fn last_lines(&self) -> Vec<String> {
        self.lines_within(LOGGED_LINES_MAX)
    }

    /// As many lines as there are, within reason; safe to show.
    pub(super) fn lines(&self) -> Vec<String> {
        self.lines_within(SHOWN_LINES_MAX)
    }

    fn lines_within(&self, lines_max: usize) -> Vec<String> {
        let bytes: Vec<u8> = self.kept.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let mut lines: Vec<String> =
            text.lines().rev().filter(|line| !line.trim().is_empty()).take(lines_max).map(shown).collect();
        lines.reverse();
        lines
    }

    // The first letter of the text occurs nowhere else in it, so a mismatch can only start a new match, not continue
    // one.
    fn watch_for_panic(&mut self, byte: u8) {
        let expected = PANIC.get(self.panic_matched).copied();
        self.panic_matched = match expected {
            Some(expected) if expected == byte => self.panic_matched + 1,
            _ => usize::from(PANIC.first() == Some(&byte)),
        };
        self.panicked |= self.panic_matched == PANIC.len();
    }
}

/// A line as it may be logged: cut, and with nothing in it that moves a cursor.
pub(super) fn shown(line: &str) -> String {
    let line = line.trim_end();
    let end = line.char_indices().nth(SHOWN_LINE_CHARS_MAX).map_or(line.len(), |(at, _)| at);
    let mut shown: String = printable::letters(line.get(..end).unwrap_or_default()).collect();
    if end < line.len() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_leaves_the_last_lines_only() {
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
    fn a_panic_is_seen_across_pieces_and_false_starts() {
        let mut tail = ConsoleTail::default();
        tail.push(b"KKernel pan Kernel panic - not");
        assert!(!tail.panicked());
        tail.push(b" syncing: VFS");
        assert!(tail.panicked());
    }

    #[test]
    fn control_characters_are_escaped_and_long_lines_cut() {
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
