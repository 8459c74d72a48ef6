// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Text from a guest, made safe to log and to show.

/// Returns the text's characters with the harmful ones escaped: control characters can move a terminal's cursor, and
/// bidirectional marks can reorder a line.
pub(crate) fn letters(text: &str) -> impl Iterator<Item = char> {
    text.chars().flat_map(|letter| {
        let harmful = is_harmful(letter);
        let escaped = harmful.then(|| letter.escape_unicode()).into_iter().flatten();
        escaped.chain((!harmful).then_some(letter))
    })
}

/// Returns at most `bytes_max` bytes of the text, safe to show.
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

/// Whether a character can control a terminal or reorder a line.
pub(crate) fn is_harmful(letter: char) -> bool {
    letter.is_control() || matches!(letter, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn harmful_characters_are_escaped_and_length_is_limited() {
        assert_eq!(text("a\x1b[2Jb\nc\u{202e}", 100), "a\\u{1b}[2Jb\\u{a}c\\u{202e}");
        assert_eq!(text(&"é".repeat(10), 5), "éé");
    }
}
