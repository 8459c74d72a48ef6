// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Makes the host's connections for its guests, directly or through a proxy.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use rustix::{io::Errno, net::sockopt};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use waggle_protocol::egress::Refusal;

use super::proxy::{Proxy, ProxyFault};
use crate::domain::egress::DomainName;

/// Timeout of an attempt to connect. Programs in guests mostly have shorter timeouts.
const DIAL_MAX: Duration = Duration::from_secs(30);

/// TCP keepalive detects a vanished peer after two minutes. A peer that responds may be idle without limit.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;

/// Timeout for the last data of a flow that ended in order: as long as the kernel repeats data to a peer that has
/// vanished.
const DRAIN_MAX: Duration = Duration::from_secs(15 * 60);

/// Pauses between the checks whether the last data has arrived. On a network of machines nearby it takes less than the
/// first pause.
const DRAIN_PAUSE_MIN: Duration = Duration::from_millis(1);
const DRAIN_PAUSE_MAX: Duration = Duration::from_secs(1);

/// A limit of a connection's buffers in the kernel.
#[derive(Clone, Copy, Debug)]
pub(super) enum Buffers {
    Medium,
    Small,
}

impl Buffers {
    /// Returns the size per direction, in bytes. The kernel doubles this size for its bookkeeping.
    fn bytes(self) -> usize {
        match self {
            Self::Medium => 128 * 1024,
            Self::Small => 32 * 1024,
        }
    }
}

/// Connects to a guest's destination. If the first address refuses the connection, tries the next one; there are
/// several only for the host's loopback. A proxy receives `name` instead of an address if there is a name, since
/// proxies filter by name.
///
/// # Errors
/// The reason for the refusal, which the caller sends to the guest.
pub(super) async fn dial(
    addresses: &[IpAddr],
    port: u16,
    name: Option<&DomainName>,
    proxy: Option<&Proxy>,
) -> Result<TcpStream, Refusal> {
    let dialled = timeout(DIAL_MAX, async {
        for address in addresses {
            match dial_one(*address, port, name, proxy).await {
                Err(Refusal::Refused) => {}
                // The host may have no IPv6, so a later address reports nothing but success.
                Err(reason) if Some(address) == addresses.first() => return Err(reason),
                Err(_) => break,
                Ok(stream) => return Ok(stream),
            }
        }
        Err(Refusal::Refused)
    });
    let stream = dialled.await.unwrap_or(Err(Refusal::TimedOut))?;
    prepare(&stream).map_err(|fault| refusal(&fault))?;
    Ok(stream)
}

async fn dial_one(
    address: IpAddr,
    port: u16,
    name: Option<&DomainName>,
    proxy: Option<&Proxy>,
) -> Result<TcpStream, Refusal> {
    match proxy {
        // A proxy cannot reach the host's loopback address.
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
}

/// Sets the options of a new connection. A connection that is closed before all its data has arrived is reset. So a
/// remote server does not mistake the partial data of a lost guest for complete data.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_linger(stream, Some(Duration::ZERO))?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES)?;
    Ok(())
}

/// Prevents the socket buffers of a connection from growing. A guest that also controls the remote server could make
/// hundreds of buffers grow to some megabytes each by reading fast, and then leave them full.
pub(super) fn limit_buffers(stream: &TcpStream, buffers: Buffers) -> io::Result<()> {
    sockopt::set_socket_send_buffer_size(stream, buffers.bytes())?;
    sockopt::set_socket_recv_buffer_size(stream, buffers.bytes())?;
    Ok(())
}

/// Waits until the server has acknowledged all data of a flow that ended in order, up to [`DRAIN_MAX`]. If the
/// connection were closed before, the kernel would keep the data without a process that counts it, and a guest with a
/// server that does not read could fill the kernel's memory with flow after flow.
pub(super) async fn drained(stream: &TcpStream) {
    let deadline = Instant::now() + DRAIN_MAX;
    let mut pause = DRAIN_PAUSE_MIN;
    // After both ends and the last acknowledgement, the socket has no peer any longer.
    while stream.peer_addr().is_ok() && Instant::now() < deadline {
        sleep(pause).await;
        pause = (pause * 2).min(DRAIN_PAUSE_MAX);
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
