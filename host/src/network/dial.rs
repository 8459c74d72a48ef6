// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Makes the host's connections for its guests, directly or through a proxy.

use std::{
    error::Error,
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use rustix::{io::Errno, net::sockopt};
use tokio::{net::TcpStream, time::timeout};
use waggle_protocol::egress::Refusal;

use super::proxy::{Proxy, ProxyFault};
use crate::domain::egress::DomainName;

/// Timeout of a connect; programs in guests have timeouts of their own, mostly shorter.
const DIAL_MAX: Duration = Duration::from_secs(30);

/// TCP keepalive: a peer that vanished is noticed after two minutes. One that responds may be idle without limit.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;

/// Size of a small kernel buffer per direction, in bytes; the kernel doubles it for its bookkeeping.
const SMALL_BUFFER_BYTES: usize = 128 * 1024;

/// Connects to a guest's destination. A proxy gets the name if there is one, as proxies decide by names.
///
/// # Errors
/// The refusal to send to the guest.
pub(super) async fn dial(
    address: IpAddr,
    port: u16,
    name: Option<&DomainName>,
    proxy: Option<&Proxy>,
) -> Result<TcpStream, Refusal> {
    let dialled = timeout(DIAL_MAX, async {
        match proxy {
            // A proxy cannot reach the host's own loopback.
            Some(proxy) if !address.is_loopback() => {
                let target = name.map_or_else(|| address.to_string(), ToString::to_string);
                proxy.connect(&target, port, address.is_ipv6() && name.is_none()).await.map_err(|fault| match fault {
                    ProxyFault::Dial { source } => refusal(&source),
                    ProxyFault::Status { status } => Proxy::refusal(status),
                    ProxyFault::InvalidResponse => Refusal::Unreachable,
                })
            }
            Some(_) | None => TcpStream::connect(SocketAddr::new(address, port)).await.map_err(|fault| refusal(&fault)),
        }
    });
    let stream = dialled.await.unwrap_or(Err(Refusal::TimedOut))?;
    prepare(&stream).map_err(|fault| refusal(&fault))?;
    Ok(stream)
}

/// Sets the options of a new connection. It closes with a reset until [`end`]: a server must not mistake the data of a
/// lost guest for complete.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_linger(stream, Some(Duration::ZERO))?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES)?;
    Ok(())
}

/// Keeps the kernel's buffers of a connection from growing: with a server of its own, a guest could make hundreds grow
/// to some megabytes each by reading fast, and then leave them full.
pub(super) fn limit_buffers(stream: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_send_buffer_size(stream, SMALL_BUFFER_BYTES)?;
    sockopt::set_socket_recv_buffer_size(stream, SMALL_BUFFER_BYTES)?;
    Ok(())
}

/// Lets a connection whose flow ended in order close in order: data in transit still arrives.
pub(super) fn end(stream: &TcpStream) {
    if let Err(fault) = sockopt::set_socket_linger(stream, None) {
        tracing::debug!(error = &fault as &dyn Error, "failed to end a connection in order; it ends with a reset");
    }
}

fn refusal(fault: &io::Error) -> Refusal {
    let errno = Errno::from_io_error(fault);
    let is = |wanted: &[Errno]| errno.is_some_and(|errno| wanted.contains(&errno));
    if fault.kind() == io::ErrorKind::TimedOut {
        Refusal::TimedOut
    } else if is(&[Errno::CONNREFUSED, Errno::CONNRESET]) {
        Refusal::Refused
    } else if is(&[Errno::MFILE, Errno::NFILE, Errno::ADDRNOTAVAIL, Errno::NOBUFS, Errno::NOMEM]) {
        // The host has no descriptor, port or memory left.
        Refusal::Busy
    } else {
        Refusal::Unreachable
    }
}
