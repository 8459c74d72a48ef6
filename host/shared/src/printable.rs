// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Text from a guest, an image or a registry, made safe to log and to show.

/// Returns the text's characters with the harmful ones escaped.
pub fn letters(text: &str) -> impl Iterator<Item = char> {
    text.chars().flat_map(|letter| {
        let harmful = is_harmful(letter);
        let escaped = harmful.then(|| letter.escape_unicode()).into_iter().flatten();
        escaped.chain((!harmful).then_some(letter))
    })
}

/// Returns at most `bytes_max` bytes of the text, safe to show.
#[must_use]
pub fn text(text: &str, bytes_max: usize) -> String {
    cut(text, bytes_max).0
}

/// Like [`text`], and also returns whether a part is missing.
#[must_use]
pub fn cut(text: &str, bytes_max: usize) -> (String, bool) {
    let mut shown = String::new();
    for letter in letters(text) {
        if shown.len() + letter.len_utf8() > bytes_max {
            return (shown, true);
        }
        shown.push(letter);
    }
    (shown, false)
}

/// Whether a character can control a terminal, begin a line, reorder a line, or hide text from a reader.
#[must_use]
pub fn is_harmful(letter: char) -> bool {
    letter.is_control()
        || matches!(letter,
            // Soft hyphen, fillers and separators without a width.
            '\u{ad}' | '\u{34f}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}' | '\u{2060}'..='\u{2065}' | '\u{3164}' | '\u{feff}' | '\u{ffa0}'
            // Line separators, and marks of direction.
            | '\u{61c}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{206f}'
            // Annotations, shorthand and musical controls, tags and variation selectors, with which any text can be
            // hidden.
            | '\u{fe00}'..='\u{fe0f}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn harmful_characters_are_escaped_and_length_is_limited() {
        assert_eq!(text("a\x1b[2Jb\nc\u{202e}", 100), "a\\u{1b}[2Jb\\u{a}c\\u{202e}");
        assert_eq!(cut(&"é".repeat(10), 5), ("éé".to_owned(), true));
        assert_eq!(cut("éé", 4), ("éé".to_owned(), false));
    }

    #[test]
    fn invisible_characters_are_escaped_and_others_are_not() {
        let hidden = ['\u{9b}', '\u{ad}', '\u{61c}', '\u{200b}', '\u{200d}', '\u{2066}', '\u{feff}', '\u{e0041}'];
        assert!(hidden.into_iter().all(is_harmful));
        assert!(['\u{fe00}', '\u{fe0f}', '\u{fff0}', '\u{1bca0}', '\u{1d17a}'].into_iter().all(is_harmful));
        assert_eq!(text("naïve 日本 🐝 → x\u{301}", 100), "naïve 日本 🐝 → x\u{301}");
    }
}
