// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Masks the credentials of URLs in clap's errors, which repeat misplaced arguments.

use clap::error::ContextValue;

/// Masks the user and the password of each URL in the error.
pub(super) fn mask_credentials(mut fault: clap::Error) -> clap::Error {
    let masked = fault.context().filter_map(|(kind, value)| {
        let ContextValue::String(text) = value else { return None };
        Some((kind, ContextValue::String(mask(text)?)))
    });
    for (kind, value) in masked.collect::<Vec<_>>() {
        fault.insert(kind, value);
    }
    fault
}

/// The URL with its user and password masked, or `None` if it has neither.
fn mask(text: &str) -> Option<String> {
    let (scheme, rest) = text.split_once("://")?;
    // A password that is not escaped may contain a slash or an @.
    let (_, place) = rest.rsplit_once('@')?;
    Some(format!("{scheme}://...@{place}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_the_credentials_and_keeps_the_host() {
        for (text, expected) in [
            ("http://bee:honey@h:1/x", Some("http://...@h:1/x")),
            ("http://bee:ho/n@ey@h:1", Some("http://...@h:1")),
            ("http://h:1/x", None),
            ("python@sha256:0", None),
        ] {
            assert_eq!(mask(text).as_deref(), expected, "{text}");
        }
    }
}
