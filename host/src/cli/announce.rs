// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What a person who starts the server sees once it listens.

use std::{
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use serde_json::json;

use crate::domain::{image::ImageRef, runtime::ByRuntime};

/// Prints the endpoint, the images, the back end and a `.mcp.json` to paste.
pub(super) fn announce(address: SocketAddr, images: &ByRuntime<ImageRef>, backend: &str) -> io::Result<()> {
    let endpoint = format!("http://{}/mcp", reachable(address));
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

/// An address that a client on this machine can use.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => ip,
    };
    SocketAddr::new(ip, address.port())
}
