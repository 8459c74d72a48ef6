// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Text that a guest wrote, made safe to log and to show.

/// The text's letters, with those escaped that would do something instead of being seen: control characters move a
/// terminal's cursor, bidirectional marks reorder what is read.
pub(crate) fn letters(text: &str) -> impl Iterator<Item = char> {
    text.chars().flat_map(|letter| {
        let harmful = is_harmful(letter);
        let escaped = harmful.then(|| letter.escape_unicode()).into_iter().flatten();
        escaped.chain((!harmful).then_some(letter))
    })
}

/// At most `bytes_max` bytes of the text, safe to show.
pub(crate) fn text(text: &str, bytes_max: usize) -> String {
    let mut shown = String::new();
    for letter in letters(text) {
        if shown.len() + letter.len_utf8() > bytes_max {
            break;
        }
        shown.push(letter);
    }
    shown
}

/// Whether a letter does something instead of being seen.
pub(crate) fn is_harmful(letter: char) -> bool {
    letter.is_control() || matches!(letter, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_the_guest_is_shown_without_control_characters_and_within_the_limit() {
        assert_eq!(text("a\x1b[2Jb\nc\u{202e}", 100), "a\\u{1b}[2Jb\\u{a}c\\u{202e}");
        assert_eq!(text(&"é".repeat(10), 5), "éé");
    }
}
