// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Pieces of text that may start or end in the middle of a character.

/// Maximum number of continuation bytes of a UTF-8 character.
const CONTINUATION_BYTES_MAX: usize = 3;

/// Strips the rest of a character that started before these bytes.
#[must_use]
pub fn without_cut_start(bytes: &[u8]) -> &[u8] {
    let cut = bytes.iter().take(CONTINUATION_BYTES_MAX).take_while(|byte| !is_character_start(**byte)).count();
    bytes.split_at(cut).1
}

/// Strips an unfinished character at the end; invalid UTF-8 elsewhere stays.
#[must_use]
pub fn without_cut_end(bytes: &[u8]) -> &[u8] {
    let start = bytes.iter().rposition(|byte| is_character_start(*byte)).unwrap_or(bytes.len());
    let (before, last) = bytes.split_at(start);
    let is_cut = std::str::from_utf8(last).is_err_and(|fault| fault.error_len().is_none());
    if is_cut { before } else { bytes }
}

fn is_character_start(byte: u8) -> bool {
    byte & 0b1100_0000 != 0b1000_0000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strips_the_rest_of_a_character_at_the_start() {
        assert_eq!(without_cut_start(b"\x82\xaca"), b"a");
        assert_eq!(without_cut_start("€a".as_bytes()), "€a".as_bytes());
        assert_eq!(without_cut_start(b"\x80\x80\x80\x80"), b"\x80");
        assert_eq!(without_cut_start(b""), b"");
    }

    #[test]
    fn strips_an_unfinished_character_at_the_end() {
        assert_eq!(without_cut_end(b"a\xe2\x82"), b"a");
        assert_eq!(without_cut_end("a€".as_bytes()), "a€".as_bytes());
        assert_eq!(without_cut_end(b"\xe2\x82a"), b"\xe2\x82a");
        assert_eq!(without_cut_end(b"a\x80\xff"), b"a\x80\xff");
        assert_eq!(without_cut_end(b"\x80\x80"), b"\x80\x80");
        assert_eq!(without_cut_end(b""), b"");
    }
}
