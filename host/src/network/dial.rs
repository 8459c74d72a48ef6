// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Makes the host's connections for its guests, straight or by way of a proxy.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use rustix::{io::Errno, net::sockopt};
use tokio::{net::TcpStream, time::timeout};
use waggle_protocol::egress::Refusal;

use super::proxy::{Proxy, ProxyFault};
use crate::domain::egress::DomainName;

/// How long the other end may take to answer; programs in guests have time-outs of their own, mostly shorter ones.
const DIAL_MAX: Duration = Duration::from_secs(30);

/// A connection on which nothing came for so long is asked whether it is still there, so often, and so many times: a
/// peer that vanished is noticed after two minutes. One that answers may be silent for ever.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;

/// What the kernel keeps of a narrow connection in either direction, in bytes; it takes as much again for its own
/// records.
const NARROW_BUFFER_BYTES: usize = 128 * 1024;

/// Connects to where a guest wants to go.
///
/// # Errors
/// What the guest is told.
pub(super) async fn dial(
    address: IpAddr,
    port: u16,
    name: Option<&DomainName>,
    proxy: Option<&Proxy>,
) -> Result<TcpStream, Refusal> {
    let dialled = timeout(DIAL_MAX, async {
        match proxy {
            // The host's own loopback is not to be had from a proxy.
            Some(proxy) if !address.is_loopback() => {
                let target = name.map_or_else(|| address.to_string(), ToString::to_string);
                proxy.connect(&target, port, address.is_ipv6() && name.is_none()).await.map_err(|fault| match fault {
                    ProxyFault::Dial { source } => refusal(&source),
                    ProxyFault::Answer { status } => Proxy::refusal(status),
                    ProxyFault::NoAnswer => Refusal::Unreachable,
                })
            }
            Some(_) | None => TcpStream::connect(SocketAddr::new(address, port)).await.map_err(|fault| refusal(&fault)),
        }
    });
    let stream = dialled.await.unwrap_or(Err(Refusal::TimedOut))?;
    prepare(&stream).map_err(|fault| refusal(&fault))?;
    Ok(stream)
}

/// Until a flow has ended in order its end is a reset: a server must not take what a lost guest has sent for all of it.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_linger(stream, Some(Duration::ZERO))?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES)?;
    Ok(())
}

/// Keeps the kernel's buffers of a connection from growing: a guest with a server of its own could make each of
/// hundreds grow to some megabytes by a quick reader, and then leave them full.
pub(super) fn narrow(stream: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_send_buffer_size(stream, NARROW_BUFFER_BYTES)?;
    sockopt::set_socket_recv_buffer_size(stream, NARROW_BUFFER_BYTES)?;
    Ok(())
}

/// Has a connection whose flow has ended in order close in order: what is on its way still arrives.
pub(super) fn end(stream: &TcpStream) {
    if let Err(fault) = sockopt::set_socket_linger(stream, None) {
        tracing::debug!(error = &fault as &dyn std::error::Error, "a flow's connection ends with a reset");
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
