// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! An HTTP proxy between the host and the internet, used with CONNECT (RFC 9110, section 9.3.6).
//!
//! If a destination has a name, the proxy receives the name and resolves it, since proxies filter by name.

use std::{io, str::FromStr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use waggle_protocol::egress::Refusal;

/// Maximum length of the response's head, in bytes.
const HEAD_BYTES_MAX: usize = 8 * 1024;

#[derive(Clone, Debug)]
pub struct Proxy {
    host: String,
    port: u16,
    /// The value of Proxy-Authorization, `Basic …`, if the proxy authenticates its clients.
    authorization: Option<SecretString>,
}

impl FromStr for Proxy {
    type Err = ProxyUrlFault;

    fn from_str(text: &str) -> Result<Self, ProxyUrlFault> {
        if text.contains(char::is_control) {
            return Err(ProxyUrlFault::Control);
        }
        let rest = text.strip_prefix("http://").ok_or(ProxyUrlFault::Scheme)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (user, place) = rest.rsplit_once('@').map_or((None, rest), |(user, place)| (Some(user), place));
        let (host, port) = place.rsplit_once(':').ok_or(ProxyUrlFault::Port)?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let port = port.parse().ok().filter(|port| *port > 0).ok_or(ProxyUrlFault::Port)?;
        if host.is_empty() || host.contains(['/', '?', '#', ' ']) {
            return Err(ProxyUrlFault::Host);
        }
        let authorization = user.map(|user| format!("Basic {}", STANDARD.encode(user)).into());
        Ok(Self { host: host.to_owned(), port, authorization })
    }
}

/// The valid forms of a URL, for error texts.
const FORM: &str = "the URL must be http://HOST:PORT or http://USER:PASSWORD@HOST:PORT";

/// An invalid URL of a proxy. The error does not repeat the URL, since the URL may contain a password.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ProxyUrlFault {
    /// The URL contains a line break or another control character.
    #[error("the URL contains a control character, such as a line break; {FORM}")]
    Control,
    /// The scheme is missing or not `http`.
    #[error("the URL does not begin with http://; {FORM}")]
    Scheme,
    /// The port is missing or invalid.
    #[error("the port is missing or not from 1 to 65535; {FORM}")]
    Port,
    /// The host is missing or invalid.
    #[error("the host is missing or invalid; {FORM}")]
    Host,
}

/// A connection through the proxy failed.
#[derive(Debug)]
pub(super) enum ProxyFault {
    /// The proxy is unreachable.
    Dial { source: io::Error },
    /// The proxy refused the request with this status.
    Status { status: u16 },
    /// The response is not HTTP, or too long.
    InvalidResponse,
}

impl Proxy {
    /// Connects through the proxy to `target`, a name or an address. An IPv6 address needs `brackets`.
    pub(super) async fn connect(&self, target: &str, port: u16, brackets: bool) -> Result<TcpStream, ProxyFault> {
        let dial = |source| ProxyFault::Dial { source };
        let mut stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(dial)?;
        let place = if brackets { format!("[{target}]:{port}") } else { format!("{target}:{port}") };
        let mut request = format!("CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n");
        if let Some(authorization) = &self.authorization {
            request.push_str(&format!("Proxy-Authorization: {}\r\n", authorization.expose_secret()));
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).await.map_err(dial)?;
        match status(&mut stream).await {
            Some(200..=299) => Ok(stream),
            Some(status) => Err(ProxyFault::Status { status }),
            None => Err(ProxyFault::InvalidResponse),
        }
    }

    /// Converts the proxy's status into the refusal to send to the guest.
    pub(super) fn refusal(status: u16) -> Refusal {
        match status {
            400..=499 => Refusal::Refused,
            504 => Refusal::TimedOut,
            _ => Refusal::Unreachable,
        }
    }
}

/// Reads the response's head and returns the status. Does not read the flow's data, which follows the head.
async fn status(stream: &mut TcpStream) -> Option<u16> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == HEAD_BYTES_MAX {
            return None;
        }
        head.push(stream.read_u8().await.ok()?);
    }
    let line = head.split(|byte| *byte == b'\r').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxy_url_has_a_host_a_port_and_credentials() {
        let proxy: Proxy = "http://bee:honey@proxy.example:3128/".parse().unwrap();
        assert_eq!((proxy.host.as_str(), proxy.port), ("proxy.example", 3128));
        assert_eq!(proxy.authorization.unwrap().expose_secret(), "Basic YmVlOmhvbmV5");
        let proxy: Proxy = "http://[::1]:80".parse().unwrap();
        assert_eq!((proxy.host.as_str(), proxy.authorization.is_none()), ("::1", true));
    }

    #[test]
    fn error_for_an_invalid_url_names_its_part() {
        for (text, expected) in [
            ("proxy:3128", ProxyUrlFault::Scheme),
            ("https://proxy:1", ProxyUrlFault::Scheme),
            ("http://proxy", ProxyUrlFault::Port),
            ("http://p:0", ProxyUrlFault::Port),
            ("http://:1", ProxyUrlFault::Host),
            ("http://p/x:1", ProxyUrlFault::Host),
            ("http://p\r\nX:1", ProxyUrlFault::Control),
        ] {
            assert_eq!(text.parse::<Proxy>().unwrap_err(), expected, "{text}");
        }
    }

    #[test]
    fn debug_output_hides_the_proxy_credentials() {
        let proxy: Proxy = "http://bee:honey@proxy.example:3128".parse().unwrap();
        let shown = format!("{proxy:?} {proxy:#?}");
        assert!(shown.contains("proxy.example") && shown.contains("REDACTED"), "{shown}");
        assert!(!shown.contains("bee") && !shown.contains("honey") && !shown.contains("YmVl"), "{shown}");
    }
}
