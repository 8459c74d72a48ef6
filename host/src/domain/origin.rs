// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Origins of web pages (RFC 6454).

use std::{fmt, str::FromStr};

use http::{Uri, uri::Scheme};

/// The origin of a web page: a scheme, a host, and a port unless it is the scheme's default.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Origin {
    text: String,
    default_port: Option<u16>,
}

impl Origin {
    /// Returns the origin with its port, even if it is the default port.
    #[must_use]
    pub fn with_port(&self) -> String {
        match self.default_port {
            Some(port) => format!("{}:{port}", self.text),
            None => self.text.clone(),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Origin {
    type Err = OriginFault;

    fn from_str(text: &str) -> Result<Self, OriginFault> {
        let uri: Uri = text.parse().map_err(|_| OriginFault)?;
        let scheme = uri.scheme().ok_or(OriginFault)?;
        let default = match scheme {
            _ if *scheme == Scheme::HTTPS => 443,
            _ if *scheme == Scheme::HTTP => 80,
            _ => return Err(OriginFault),
        };
        let authority = uri.authority().filter(|authority| !authority.host().is_empty()).ok_or(OriginFault)?;
        let port = authority.port_u16().filter(|port| *port != default);
        let port_text = port.map(|port| format!(":{port}")).unwrap_or_default();
        // The parser accepts more than an origin: a user, an invalid port, and a fragment, which it drops.
        let whole = format!("{scheme}://{}", authority.as_str());
        let is_whole = text.trim_end_matches('/').eq_ignore_ascii_case(&whole);
        let port_is_valid = authority.port_u16().map(|port| format!("{}:{port}", authority.host()));
        let exact = port_is_valid.unwrap_or_else(|| authority.host().to_owned()) == authority.as_str();
        let has_more = !is_whole || !exact;
        if has_more {
            return Err(OriginFault);
        }
        let text = format!("{scheme}://{}{port_text}", authority.host().to_ascii_lowercase());
        Ok(Self { text, default_port: port.is_none().then_some(default) })
    }
}

/// A text that is not an origin.
#[derive(Debug, thiserror::Error)]
#[error(
    "must be an origin: http:// or https://, a host, and the port if it is not the default; such as https://app.example"
)]
pub struct OriginFault;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origin_has_a_scheme_a_host_and_perhaps_a_port() {
        for (text, shown, with_port) in [
            ("https://app.example", "https://app.example", "https://app.example:443"),
            ("HTTP://Localhost:6274/", "http://localhost:6274", "http://localhost:6274"),
            ("http://app.example:80", "http://app.example", "http://app.example:80"),
            ("http://[::1]:8080", "http://[::1]:8080", "http://[::1]:8080"),
        ] {
            let origin: Origin = text.parse().unwrap();
            assert_eq!((origin.to_string().as_str(), origin.with_port().as_str()), (shown, with_port));
        }
        for invalid in [
            "*",
            "null",
            "app.example",
            "https://app.example/path",
            "https://bee@app.example",
            "file:///x",
            "",
            "https://app.example:99999",
            "https://app.example:",
            "https://app.example#x",
        ] {
            assert!(matches!(invalid.parse::<Origin>(), Err(OriginFault)), "{invalid}");
        }
    }
}
