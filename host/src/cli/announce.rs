// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The message that the server prints once it listens.

use std::{
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use serde_json::json;
use waggle_images::reference::ImageRef;

use crate::domain::runtime::ByRuntime;

/// Prints the endpoint, the back end, the images and a `.mcp.json` to paste.
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

/// Replaces an unspecified address with the loopback address, at which clients on this machine reach the server.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => ip,
    };
    SocketAddr::new(ip, address.port())
}
