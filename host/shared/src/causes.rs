// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Errors with their causes, for logs and messages.

use std::{borrow::Cow, error::Error};

/// Characters that end a URL in a message.
const URL_ENDS: [char; 5] = ['"', '\'', '`', '<', '>'];

/// Placeholder credentials, as in an error that shows the expected URL. They are not masked.
const PLACEHOLDER: &str = "USER:PASSWORD";

/// Joins the texts of an error and its causes, outermost first, with the credentials of URLs masked.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    mask_credentials(&text).into_owned()
}

/// Masks the user and password of each URL in a text. Errors quote settings, and any setting may hold a misplaced URL.
#[must_use]
pub fn mask_credentials(text: &str) -> Cow<'_, str> {
    let (mut masked, mut rest, mut found) = (String::new(), text, false);
    while let Some(scheme) = rest.find("://") {
        let (before, after) = rest.split_at(scheme + 3);
        masked.push_str(before);
        let end = after.find(|next: char| next.is_whitespace() || URL_ENDS.contains(&next)).unwrap_or(after.len());
        // A password that is not escaped may contain a slash or an @.
        let url = after.split_at(end).0;
        // The digest of an image follows an @, too.
        let digest = url.rsplit_once("@sha256:").filter(|(_, digest)| !digest.contains('@'));
        let url = digest.map_or(url, |(image, _)| image);
        rest = match url.rfind('@') {
            Some(at) if after.split_at(at).0 != PLACEHOLDER => {
                masked.push_str("...");
                found = true;
                after.split_at(at).1
            }
            _ => after,
        };
    }
    masked.push_str(rest);
    if found { Cow::Owned(masked) } else { Cow::Borrowed(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        ] {
            assert_eq!(mask_credentials(text), expected);
        }
    }
}
