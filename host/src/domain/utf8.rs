// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Pieces of text whose edges may lie in the middle of a character.

/// The longest UTF-8 character less its first byte.
const CONTINUATION_BYTES_MAX: usize = 3;

/// The bytes without the rest of a character that began before them.
#[must_use]
pub fn without_cut_start(bytes: &[u8]) -> &[u8] {
    let cut = bytes.iter().take(CONTINUATION_BYTES_MAX).take_while(|byte| !is_character_start(**byte)).count();
    bytes.split_at(cut).1
}

/// The bytes without a character that is unfinished at their end; what is wrong elsewhere is their writer's.
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
    fn the_rest_of_a_character_is_cut_off_at_the_start() {
        assert_eq!(without_cut_start(b"\x82\xaca"), b"a");
        assert_eq!(without_cut_start("€a".as_bytes()), "€a".as_bytes());
        assert_eq!(without_cut_start(b"\x80\x80\x80\x80"), b"\x80");
        assert_eq!(without_cut_start(b""), b"");
    }

    #[test]
    fn an_unfinished_character_is_cut_off_at_the_end() {
        assert_eq!(without_cut_end(b"a\xe2\x82"), b"a");
        assert_eq!(without_cut_end("a€".as_bytes()), "a€".as_bytes());
        assert_eq!(without_cut_end(b"\xe2\x82a"), b"\xe2\x82a");
        assert_eq!(without_cut_end(b"a\x80\xff"), b"a\x80\xff");
        assert_eq!(without_cut_end(b"\x80\x80"), b"\x80\x80");
        assert_eq!(without_cut_end(b""), b"");
    }
}
