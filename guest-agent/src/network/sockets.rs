// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The sockets of the network process, and the lookup program that steers connections to them.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsFd, OwnedFd},
};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Socket, Type};
use waggle_protocol::egress::{DNS_PORT, GUEST_ADDRESS, GUEST_ADDRESS_V6, HOST_ADDRESS};

use super::{
    handshake::{CONNECTIONS_MAX, WireSockets, accept_only_marked},
    lookup_program::{self, DNS_TCP_V4, DNS_TCP_V6, DNS_V4, DNS_V6, TCP_V4, TCP_V6},
};
use crate::sys::bpf;

/// Maximum number of TCP connections to the DNS server that wait to be accepted. A `connect` beyond the limit waits.
const DNS_BACKLOG: usize = 32;

/// Bytes that the kernel buffers for a connection in each direction: the maximum credit of a flow.
const SOCKET_BUFFER_BYTES: usize = 256 * 1024;

/// Bytes of DNS queries that the kernel buffers. Queries beyond the limit are lost, and clients repeat them.
const QUERIES_BYTES: usize = 128 * 1024;

/// The address of the IPv6 sockets. Packets to every other IPv6 address are steered to the same sockets.
const RESOLVER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 1);

/// The sockets, and the BPF link of the lookup program. The program is active until all copies of the link are closed.
#[derive(Debug)]
pub(super) struct Sockets {
    /// The listeners for connections to the host, one per address family. They see only the SYNs of the agent.
    pub(super) listeners: Vec<TcpListener>,
    pub(super) wire: WireSockets,
    /// The TCP listeners of the DNS server, one per address family.
    pub(super) dns_listeners: Vec<TcpListener>,
    /// The UDP sockets of the DNS server, one per address family.
    pub(super) dns_sockets: Vec<UdpSocket>,
    _link: OwnedFd,
}

impl Sockets {
    /// Opens the sockets, and attaches the lookup program to this process's network namespace. Needs root.
    pub(super) fn open(ipv6: bool) -> io::Result<Self> {
        let map = bpf::make_socket_map(lookup_program::SOCKETS).map_err(kernel_lacks)?;
        let wire = WireSockets::open(ipv6).map_err(kernel_lacks)?;
        let mut families = vec![(IpAddr::from(HOST_ADDRESS), [TCP_V4, DNS_TCP_V4, DNS_V4])];
        if ipv6 {
            families.push((RESOLVER_V6.into(), [TCP_V6, DNS_TCP_V6, DNS_V6]));
        }
        let (mut listeners, mut dns_listeners, mut dns_sockets) = (Vec::new(), Vec::new(), Vec::new());
        for (address, [tcp_key, dns_tcp_key, dns_key]) in families {
            let listener = bind_listener(address)?;
            // The filter comes first, so that no connection is accepted without it.
            accept_only_marked(&listener)?;
            dns_listeners.push(listen(bind_listener(address)?, DNS_BACKLOG)?);
            listeners.push(listen(listener, CONNECTIONS_MAX)?);
            dns_sockets.push(bind_dns(address)?);
            let put = |key, socket| bpf::put_socket(map.as_fd(), key, socket).map_err(kernel_lacks);
            listeners.last().map(|one| put(tcp_key, one.as_fd())).transpose()?;
            dns_listeners.last().map(|one| put(dns_tcp_key, one.as_fd())).transpose()?;
            dns_sockets.last().map(|one| put(dns_key, one.as_fd())).transpose()?;
        }
        let instructions = lookup_program::program(map.as_fd(), GUEST_ADDRESS, GUEST_ADDRESS_V6)?;
        let program = bpf::load_sk_lookup(&instructions).map_err(kernel_lacks)?;
        let namespace = File::open("/proc/self/ns/net")?;
        let link = bpf::link_sk_lookup(program.as_fd(), namespace.as_fd()).map_err(kernel_lacks)?;
        Ok(Self { listeners, wire, dns_listeners, dns_sockets, _link: link })
    }

    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            listeners: self.listeners.iter().map(TcpListener::try_clone).collect::<io::Result<_>>()?,
            wire: self.wire.try_clone()?,
            dns_listeners: self.dns_listeners.iter().map(TcpListener::try_clone).collect::<io::Result<_>>()?,
            dns_sockets: self.dns_sockets.iter().map(UdpSocket::try_clone).collect::<io::Result<_>>()?,
            _link: self._link.try_clone()?,
        })
    }
}

/// Adds the requirements for the kernel to an error, because operators can supply their own kernel.
#[expect(clippy::needless_pass_by_value, reason = "it is for map_err")]
fn kernel_lacks(source: io::Error) -> io::Error {
    let needed =
        "the guest's network requires Linux 5.9 or newer with CONFIG_BPF_SYSCALL, CONFIG_INET and CONFIG_PACKET";
    io::Error::new(source.kind(), format!("{source}; {needed}"))
}

/// Binds to any free port, because only the lookup program directs connections here.
fn bind_listener(address: IpAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(SocketAddr::new(address, 0)), Type::STREAM, None)?;
    socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
    if address.is_ipv6() {
        socket.set_freebind_v6(true)?;
    }
    socket.bind(&SocketAddr::new(address, 0).into())?;
    Ok(socket)
}

fn listen(socket: Socket, backlog: usize) -> io::Result<TcpListener> {
    socket.listen(i32::try_from(backlog).map_err(io::Error::other)?)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Binds to the DNS port, because an answer must come from the queried port.
fn bind_dns(address: IpAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(SocketAddr::new(address, 0)), Type::DGRAM, None)?;
    socket.set_recv_buffer_size(QUERIES_BYTES)?;
    socket.set_nonblocking(true)?;
    // Answers must also come from the queried address, and clients may query any address.
    if address.is_ipv4() {
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    } else {
        socket.set_freebind_v6(true)?;
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    }
    socket.bind(&SocketAddr::new(address, DNS_PORT).into())?;
    Ok(socket.into())
}
