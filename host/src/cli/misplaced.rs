// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Hides the credentials of URLs in clap's errors, which repeat each argument that is in the wrong place.

use clap::error::ContextValue;

/// The error without the user and the password of a URL in it.
pub(super) fn without_credentials(mut fault: clap::Error) -> clap::Error {
    let masked = fault.context().filter_map(|(kind, value)| {
        let ContextValue::String(text) = value else { return None };
        Some((kind, ContextValue::String(mask(text)?)))
    });
    for (kind, value) in masked.collect::<Vec<_>>() {
        fault.insert(kind, value);
    }
    fault
}

/// The URL without its user and password, or `None` if it has neither.
fn mask(text: &str) -> Option<String> {
    let (scheme, rest) = text.split_once("://")?;
    // A password that should have been escaped may have a slash or an @ in it.
    let (_, place) = rest.rsplit_once('@')?;
    Some(format!("{scheme}://...@{place}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_loses_its_credentials_and_keeps_its_host() {
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
