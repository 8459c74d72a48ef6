// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! An HTTP proxy between the host and the internet, asked to CONNECT (RFC 9110, section 9.3.6).
//!
//! A name goes to the proxy as a name, since that is what proxies decide by; so where it leads is the proxy's to know.

use std::{fmt, io, str::FromStr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use waggle_protocol::egress::Refusal;

/// Longest answer to CONNECT, in bytes.
const ANSWER_BYTES_MAX: usize = 8 * 1024;

/// An HTTP proxy.
#[derive(Clone, Eq, PartialEq)]
pub struct Proxy {
    host: String,
    port: u16,
    /// `Basic …`, if it wants to know who asks.
    authorization: Option<String>,
}

// Whoever reads a log must not learn the password.
impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

impl FromStr for Proxy {
    type Err = ProxyUrlFault;

    fn from_str(text: &str) -> Result<Self, ProxyUrlFault> {
        let rest = text.strip_prefix("http://").ok_or(ProxyUrlFault)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (user, place) = rest.rsplit_once('@').map_or((None, rest), |(user, place)| (Some(user), place));
        let (host, port) = place.rsplit_once(':').ok_or(ProxyUrlFault)?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let port = port.parse().ok().filter(|port| *port > 0).ok_or(ProxyUrlFault)?;
        if host.is_empty() || host.contains(['/', '?', '#', ' ']) {
            return Err(ProxyUrlFault);
        }
        let authorization = user.map(|user| format!("Basic {}", STANDARD.encode(user)));
        Ok(Self { host: host.to_owned(), port, authorization })
    }
}

/// A text names no proxy. It is not repeated, since it may hold a password.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a proxy is written as http://HOST:PORT or http://USER:PASSWORD@HOST:PORT")]
pub struct ProxyUrlFault;

/// The proxy made no connection.
#[derive(Debug)]
pub(super) enum ProxyFault {
    /// It cannot be reached.
    Dial { source: io::Error },
    /// It refused.
    Answer { status: u16 },
    /// It said nothing that could be understood.
    NoAnswer,
}

impl Proxy {
    /// Has the proxy connect to a host, a name or an address.
    pub(super) async fn connect(&self, target: &str, port: u16, brackets: bool) -> Result<TcpStream, ProxyFault> {
        let dial = |source| ProxyFault::Dial { source };
        let mut stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(dial)?;
        let place = if brackets { format!("[{target}]:{port}") } else { format!("{target}:{port}") };
        let mut request = format!("CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n");
        if let Some(authorization) = &self.authorization {
            request.push_str(&format!("Proxy-Authorization: {authorization}\r\n"));
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).await.map_err(dial)?;
        match answer(&mut stream).await {
            Some(200..=299) => Ok(stream),
            Some(status) => Err(ProxyFault::Answer { status }),
            None => Err(ProxyFault::NoAnswer),
        }
    }

    /// What a guest is told where the proxy refused.
    pub(super) fn refusal(status: u16) -> Refusal {
        match status {
            400..=499 => Refusal::Refused,
            504 => Refusal::TimedOut,
            _ => Refusal::Unreachable,
        }
    }
}

/// Reads the head of the answer and not a byte more: what follows is the flow's.
async fn answer(stream: &mut TcpStream) -> Option<u16> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == ANSWER_BYTES_MAX {
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
    fn a_proxy_is_read_and_its_password_never_shown() {
        let proxy: Proxy = "http://bee:honey@proxy.example:3128/".parse().unwrap();
        assert_eq!((proxy.host.as_str(), proxy.port), ("proxy.example", 3128));
        assert_eq!(proxy.authorization.as_deref(), Some("Basic YmVlOmhvbmV5"));
        assert!(!format!("{proxy:?}").contains("honey") && !format!("{proxy:?}").contains("YmVl"));
        assert_eq!("http://[::1]:80".parse::<Proxy>().unwrap().host, "::1");
        for wrong in ["proxy:3128", "https://proxy:1", "http://proxy", "http://:1", "http://p:0", "http://p/x:1"] {
            assert_eq!(wrong.parse::<Proxy>(), Err(ProxyUrlFault), "{wrong}");
        }
    }
}
