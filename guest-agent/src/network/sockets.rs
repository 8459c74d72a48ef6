// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The sockets of the network process, and the lookup program that steers connections to them.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsFd, OwnedFd},
};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::net::TcpStream;
use waggle_protocol::egress::{DNS_PORT, GUEST_ADDRESS, GUEST_ADDRESS_V6, HOST_ADDRESS};

use super::lookup_program::{self, DNS_V4, DNS_V6, TCP_V4, TCP_V6};
use crate::sys::bpf;

/// Maximum number of connections that wait to be accepted. A `connect` beyond the limit waits.
const BACKLOG: i32 = 1024;

/// Bytes that the kernel buffers for a connection in each direction: the maximum credit of a flow.
const SOCKET_BUFFER_BYTES: usize = 256 * 1024;

/// Bytes of DNS queries that the kernel buffers. Queries beyond the limit are lost, and clients repeat them.
const QUERIES_BYTES: usize = 128 * 1024;

/// The address of the DNS server's IPv6 socket. Queries to every other IPv6 address are steered to the same socket.
const RESOLVER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 1);

/// The sockets, and the BPF link of the lookup program. The program is active until all copies of the link are closed.
#[derive(Debug)]
pub(super) struct Sockets {
    /// The TCP listeners, one per address family.
    pub(super) listeners: Vec<TcpListener>,
    /// The UDP sockets of the DNS server, one per address family.
    pub(super) dns_sockets: Vec<UdpSocket>,
    _link: OwnedFd,
}

impl Sockets {
    /// Opens the sockets, and attaches the lookup program to this process's network namespace. Needs root.
    pub(super) fn open(ipv6: bool) -> io::Result<Self> {
        let map = bpf::make_socket_map(lookup_program::SOCKETS).map_err(kernel_lacks)?;
        let mut sockets = [(TCP_V4, DNS_V4, IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(HOST_ADDRESS))].to_vec();
        if ipv6 {
            sockets.push((TCP_V6, DNS_V6, Ipv6Addr::LOCALHOST.into(), RESOLVER_V6.into()));
        }
        let (mut listeners, mut dns_sockets) = (Vec::new(), Vec::new());
        for (tcp_key, dns_key, tcp_address, dns_address) in sockets {
            let listener = listen(tcp_address)?;
            bpf::put_socket(map.as_fd(), tcp_key, listener.as_fd()).map_err(kernel_lacks)?;
            listeners.push(listener);
            let dns_socket = bind_dns(dns_address)?;
            bpf::put_socket(map.as_fd(), dns_key, dns_socket.as_fd()).map_err(kernel_lacks)?;
            dns_sockets.push(dns_socket);
        }
        let instructions = lookup_program::program(map.as_fd(), GUEST_ADDRESS, GUEST_ADDRESS_V6)?;
        let program = bpf::load_sk_lookup(&instructions).map_err(kernel_lacks)?;
        let namespace = File::open("/proc/self/ns/net")?;
        let link = bpf::link_sk_lookup(program.as_fd(), namespace.as_fd()).map_err(kernel_lacks)?;
        Ok(Self { listeners, dns_sockets, _link: link })
    }

    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            listeners: self.listeners.iter().map(TcpListener::try_clone).collect::<io::Result<_>>()?,
            dns_sockets: self.dns_sockets.iter().map(UdpSocket::try_clone).collect::<io::Result<_>>()?,
            _link: self._link.try_clone()?,
        })
    }
}

/// Adds the requirements for the kernel to an error, because operators can supply their own kernel.
#[expect(clippy::needless_pass_by_value, reason = "it is for map_err")]
fn kernel_lacks(source: io::Error) -> io::Error {
    let needed = "the guest's network requires Linux 5.9 or newer with CONFIG_BPF_SYSCALL and CONFIG_INET";
    io::Error::new(source.kind(), format!("{source}; {needed}"))
}

/// Listens on any free port, because only the lookup program directs connections here.
fn listen(address: IpAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(SocketAddr::new(address, 0)), Type::STREAM, None)?;
    socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.bind(&SocketAddr::new(address, 0).into())?;
    socket.listen(BACKLOG)?;
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

/// Ends a connection with a reset.
pub(super) fn reset(tcp: TcpStream) {
    // If the call fails, the connection ends without a reset.
    let _set = SockRef::from(&tcp).set_linger(Some(std::time::Duration::ZERO));
    drop(tcp);
}
