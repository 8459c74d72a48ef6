// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The message that the server prints once it listens.

use std::{
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use serde_json::json;
use waggle_images::reference::ImageRef;

use crate::{config::Access, domain::runtime::ByRuntime};

/// Returns the URL of the endpoint, as clients on this machine reach it. A certificate is for a name, so with TLS it
/// contains the first name that the operator has given the server.
pub(super) fn endpoint(access: &Access, address: SocketAddr) -> String {
    match (access.tls(), access.allowed_hosts.first()) {
        (Some(_), Some(host)) => match host.parse::<Ipv6Addr>() {
            Ok(ip) => format!("https://[{ip}]:{}/mcp", address.port()),
            Err(_name) => format!("https://{host}:{}/mcp", address.port()),
        },
        (Some(_), None) => format!("https://{}/mcp", reachable(address)),
        (None, _) => format!("http://{}/mcp", reachable(address)),
    }
}

/// Prints the endpoint, the back end, the images and a `.mcp.json` to paste.
pub(super) fn announce(endpoint: &str, images: &ByRuntime<ImageRef>, backend: &str) -> io::Result<()> {
    let snippet = json!({"mcpServers": {"waggle": {"type": "http", "url": endpoint}}});
    let mut out = io::stdout().lock();
    writeln!(out, "waggle serves MCP at {endpoint}\n")?;
    writeln!(out, "  machines  {backend}")?;
    writeln!(out, "  python    {}", images.python)?;
    writeln!(out, "  node      {}", images.node)?;
    writeln!(out, "  shell     {}\n", images.shell)?;
    writeln!(out, "To use it, paste this into .mcp.json:\n\n{snippet:#}\n")?;
    out.flush()
}

/// Replaces an unspecified address with the loopback address, at which clients on this machine reach the server.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, FromArgMatches as _};

    use super::*;

    #[test]
    fn endpoint_has_the_scheme_and_the_name_of_the_certificate() {
        let check = |words: &[&str], address: &str, expected: &str| {
            let command = Access::augment_args(clap::Command::new("x"));
            let words = std::iter::once(&"x").chain(words);
            let access = Access::from_arg_matches(&command.try_get_matches_from(words).unwrap()).unwrap();
            assert_eq!(endpoint(&access, address.parse().unwrap()), expected);
        };
        let named = ["--tls-cert", "c", "--tls-key", "k", "--allowed-hosts", "waggle.example,10.0.0.1"];
        check(&[], "0.0.0.0:80", "http://127.0.0.1:80/mcp");
        check(&named[4..], "[::]:80", "http://[::1]:80/mcp");
        check(&named[..4], "192.0.2.1:443", "https://192.0.2.1:443/mcp");
        check(&named, "0.0.0.0:8443", "https://waggle.example:8443/mcp");
    }
}
