// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The text form of file names, which may be any bytes except `/` and NUL.
//!
//! A name that is UTF-8 is its own text. In any other name, each invalid byte and each backslash is escaped as `\x` and
//! two upper-case hexadecimal digits: the Latin-1 name `caf\é` becomes `caf\x5C\xE9`. A UTF-8 name that would be read
//! as such a text is escaped as well. So different names have different texts, and each text leads back to its name.
//! The names of a path are escaped one by one, so the text of a path is that of its folder and that of its last name.

use std::{borrow::Cow, fmt::Write as _, str};

/// Maximum length of the text of a name, relative to the length of the name: each byte may become four.
pub const TEXT_BYTES_PER_BYTE_MAX: usize = 4;

/// Returns the text of a path or a name.
#[must_use]
pub fn to_text(path: &[u8]) -> Cow<'_, str> {
    match str::from_utf8(path) {
        Ok(text) if !has_escaped_name(text) => Cow::Borrowed(text),
        _ => {
            let mut text = String::new();
            for (at, name) in path.split(|byte| *byte == b'/').enumerate() {
                if at > 0 {
                    text.push('/');
                }
                push_name(name, &mut text);
            }
            Cow::Owned(text)
        }
    }
}

/// Returns the path or the name with this text.
#[must_use]
pub fn from_text(text: &str) -> Cow<'_, [u8]> {
    if !has_escaped_name(text) {
        return Cow::Borrowed(text.as_bytes());
    }
    let names: Vec<_> = text.split('/').map(|name| unescaped(name).unwrap_or_else(|| name.into())).collect();
    Cow::Owned(names.join(&b'/'))
}

fn has_escaped_name(text: &str) -> bool {
    text.contains('\\') && text.split('/').any(|name| unescaped(name).is_some())
}

fn push_name(name: &[u8], text: &mut String) {
    if let Ok(name) = str::from_utf8(name)
        && unescaped(name).is_none()
    {
        text.push_str(name);
        return;
    }
    for chunk in name.utf8_chunks() {
        for (at, part) in chunk.valid().split('\\').enumerate() {
            text.push_str(if at > 0 { "\\x5C" } else { "" });
            text.push_str(part);
        }
        for byte in chunk.invalid() {
            // Writing to a string never fails.
            let _ = write!(text, "\\x{byte:02X}");
        }
    }
}

/// Returns the name with the escaped text; `None` if the text is not escaped, and so is the name itself.
fn unescaped(text: &str) -> Option<Vec<u8>> {
    let (start, escapes) = text.split_once('\\')?;
    let (mut name, mut has_backslash) = (start.as_bytes().to_vec(), false);
    for escape in escapes.split('\\') {
        let (code, rest) = escape.as_bytes().split_at_checked("x00".len())?;
        let byte = escaped_byte(code)?;
        has_backslash |= byte == b'\\';
        name.push(byte);
        name.extend_from_slice(rest);
    }
    (has_backslash || str::from_utf8(&name).is_err()).then_some(name)
}

fn escaped_byte(code: &[u8]) -> Option<u8> {
    let digits = code.strip_prefix(b"x")?;
    let are_digits = digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'A'..=b'F'));
    let byte = u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?;
    (are_digits && (byte == b'\\' || !byte.is_ascii())).then_some(byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_are_not_utf8_or_look_escaped_are_escaped() {
        for (name, text) in [
            (&b"plain"[..], "plain"),
            ("grüße/世界".as_bytes(), "grüße/世界"),
            (b"", ""),
            (b"back\\slash", "back\\slash"),
            (b"unit\\x2dname", "unit\\x2dname"),
            (b"lower\\xe9", "lower\\xe9"),
            (b"utf8\\xC3\\xA9", "utf8\\xC3\\xA9"),
            (b"half\\xE9\\", "half\\xE9\\"),
            (b"caf\xe9", "caf\\xE9"),
            (b"a\\b\xff", "a\\x5Cb\\xFF"),
            ("é\u{80}".as_bytes(), "é\u{80}"),
            (b"\xc3/\xa9", "\\xC3/\\xA9"),
            (b"caf\xe9/a\\b", "caf\\xE9/a\\b"),
            (b"caf\\xE9", "caf\\x5CxE9"),
            (b"caf\\x5CxE9", "caf\\x5Cx5CxE9"),
        ] {
            assert_eq!((to_text(name), from_text(text)), (Cow::Borrowed(text), Cow::Borrowed(name)), "{text}");
        }
    }

    #[test]
    fn longest_text_is_four_times_the_name() {
        let name = [0xff; 255];
        assert_eq!(to_text(&name).len(), TEXT_BYTES_PER_BYTE_MAX * name.len());
        assert_eq!(to_text("\\x5C".repeat(60).as_bytes()).len(), 60 * (3 + TEXT_BYTES_PER_BYTE_MAX));
    }
}
