// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Errors with their causes, for logs and messages.

use std::{borrow::Cow, error::Error};

use crate::printable;

/// Maximum bytes of an error with its causes: enough for an error and its causes, of one line each.
const CHAIN_BYTES_MAX: usize = 2000;
/// Maximum bytes of one error's text, so that a long one leaves space for its causes. The longest advice has 400.
const ERROR_BYTES_MAX: usize = 800;
/// Marks the end of a text that was cut.
const CUT: &str = " ...";

/// Characters that end a URL in a message.
const URL_ENDS: [char; 5] = ['"', '\'', '`', '<', '>'];

/// Placeholder credentials, as in an error that shows the expected URL. They are not masked.
const PLACEHOLDER: &str = "USER:PASSWORD";

/// Joins the texts of an error and its causes, outermost first. Errors quote settings, images and registries, so the
/// credentials of URLs are masked, control characters and invisible ones are escaped, and the length is limited.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = shown(error);
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&shown(error));
        if text.len() > CHAIN_BYTES_MAX {
            return printable::text(&text, CHAIN_BYTES_MAX) + CUT;
        }
        cause = error.source();
    }
    text
}

/// Returns the text of one error.
fn shown(error: &dyn Error) -> String {
    // The mask comes first, because it needs the end of each URL.
    let text = error.to_string();
    let text = mask_credentials(&text);
    let (mut shown, is_cut) = printable::cut(&text, ERROR_BYTES_MAX);
    if is_cut {
        shown.push_str(CUT);
    }
    shown
}

/// Masks the user and password of each URL in a text. Errors quote settings, and any setting may hold a misplaced URL.
/// The time is linear in the length of the text, because images and registries determine the text of some errors.
#[must_use]
pub fn mask_credentials(text: &str) -> Cow<'_, str> {
    let (mut masked, mut rest, mut found) = (String::new(), text, false);
    while let Some(scheme) = rest.find("://") {
        let (before, after) = rest.split_at(scheme + 3);
        masked.push_str(before);
        let end = after.find(|next: char| next.is_whitespace() || URL_ENDS.contains(&next)).unwrap_or(after.len());
        let (whole, following) = after.split_at(end);
        // The digest of an image follows an @, too.
        let digest = whole.rsplit_once("@sha256:").filter(|(_, digest)| !digest.contains('@'));
        let url = digest.map_or(whole, |(image, _)| image);
        // A password that is not escaped may contain a slash or an @, and even another ://, so only the last @ counts.
        let host = match url.rfind('@') {
            Some(at) if url.split_at(at).0 != PLACEHOLDER => {
                masked.push_str("...");
                found = true;
                whole.split_at(at).1
            }
            _ => whole,
        };
        masked.push_str(host);
        rest = following;
    }
    masked.push_str(rest);
    if found { Cow::Owned(masked) } else { Cow::Borrowed(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Link {
        text: String,
        source: Option<Box<Link>>,
    }

    fn link(text: &str, source: Option<Link>) -> Link {
        Link { text: text.to_owned(), source: source.map(Box::new) }
    }

    #[test]
    fn chain_is_escaped_and_long_errors_leave_space_for_their_causes() {
        let forged = link("os is \"linux\n2026-01-01 ERROR forged\u{202e}\x1b[2J\"", None);
        let long = link(&"A".repeat(4 << 20), Some(forged));
        let text = chain(&link("failed to read http://b:h@i/x", Some(long)));
        assert!(text.starts_with("failed to read http://...@i/x: AAAA"), "{text}");
        let end = "AAA ...: os is \"linux\\u{a}2026-01-01 ERROR forged\\u{202e}\\u{1b}[2J\"";
        assert!(text.ends_with(end) && text.len() < 1000, "{text}");
        let endless = (0..100).fold(link("x", None), |source, _| link(&"A".repeat(500), Some(source)));
        assert_eq!(chain(&endless).len(), CHAIN_BYTES_MAX + CUT.len());
    }

    #[test]
    fn long_hostile_text_takes_no_longer_than_any_text_of_its_length() {
        // With a time that is quadratic in the length, this takes an hour.
        let hostile = format!("b:h@{}", "://".repeat(1_300_000));
        let text = chain(&link(&format!("x://{hostile}"), None));
        assert!(text.starts_with("x://...@://://") && text.ends_with("://:// ..."), "{text}");
        assert_eq!(mask_credentials(&hostile), hostile);
        let spaced = "a://b ".repeat(700_000);
        assert_eq!(mask_credentials(&spaced), spaced);
        let cut = chain(&link(&format!("{}é", "A".repeat(ERROR_BYTES_MAX)), None));
        assert!(cut.ends_with("AAA ..."), "{cut}");
    }

    #[test]
    fn masks_the_credentials_of_each_url_and_keeps_the_hosts() {
        for (text, expected) in [
            ("http://bee:honey@h:1/x", "http://...@h:1/x"),
            ("http://bee:ho/n@ey@h:1", "http://...@h:1"),
            ("'http://b:h@i:1' or \"ftp://b:h@j\" at k", "'http://...@i:1' or \"ftp://...@j\" at k"),
            ("must be http://USER:PASSWORD@HOST:PORT", "must be http://USER:PASSWORD@HOST:PORT"),
            ("http://h:1/x and a@b", "http://h:1/x and a@b"),
            ("python@sha256:0", "python@sha256:0"),
            ("http://b:h@sha256:@i", "http://...@i"),
            ("docker://h/python@sha256:0", "docker://h/python@sha256:0"),
            ("docker://b:h@i/python@sha256:0", "docker://...@i/python@sha256:0"),
            ("http://b:http://h@i and http://b:h@j", "http://...@i and http://...@j"),
        ] {
            assert_eq!(mask_credentials(text), expected);
        }
    }
}
