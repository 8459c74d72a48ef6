// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The sockets that all connections are steered to, and the program that steers them.

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

use super::program::{self, DNS_V4, DNS_V6, TCP_V4, TCP_V6};
use crate::sys::bpf;

/// Connections that wait to be accepted; above it, a program's connect waits in turn.
const BACKLOG: i32 = 1024;

/// What the kernel keeps of a connection in either direction, in bytes: as much as a flow's largest window.
const SOCKET_BUFFER_BYTES: usize = 256 * 1024;

/// What the kernel keeps of questions to the name service, in bytes. What is above it is lost, and asked again.
const QUESTIONS_BYTES: usize = 128 * 1024;

/// Where the resolver of IPv6 is bound, which keeps port 53 of every other address free for programs.
const RESOLVER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 1);

/// The sockets, and the hold on the program. It steers as long as this lives in some process.
#[derive(Debug)]
pub(super) struct Sockets {
    /// By family.
    pub(super) listeners: Vec<TcpListener>,
    /// By family.
    pub(super) resolvers: Vec<UdpSocket>,
    _link: OwnedFd,
}

impl Sockets {
    /// Opens the sockets and attaches the program to this process's network. Needs root.
    pub(super) fn open(ipv6: bool) -> io::Result<Self> {
        let map = bpf::make_socket_map(program::SOCKETS).map_err(kernel_lacks)?;
        let mut sockets = [(TCP_V4, DNS_V4, IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(HOST_ADDRESS))].to_vec();
        if ipv6 {
            sockets.push((TCP_V6, DNS_V6, Ipv6Addr::LOCALHOST.into(), RESOLVER_V6.into()));
        }
        let (mut listeners, mut resolvers) = (Vec::new(), Vec::new());
        for (tcp_key, dns_key, tcp_address, dns_address) in sockets {
            let listener = listen(tcp_address)?;
            bpf::put_socket(map.as_fd(), tcp_key, listener.as_fd()).map_err(kernel_lacks)?;
            listeners.push(listener);
            let resolver = resolve_at(dns_address)?;
            bpf::put_socket(map.as_fd(), dns_key, resolver.as_fd()).map_err(kernel_lacks)?;
            resolvers.push(resolver);
        }
        let instructions = program::program(map.as_fd(), GUEST_ADDRESS, GUEST_ADDRESS_V6)?;
        let program = bpf::load_sk_lookup(&instructions).map_err(kernel_lacks)?;
        let namespace = File::open("/proc/self/ns/net")?;
        let link = bpf::link_sk_lookup(program.as_fd(), namespace.as_fd()).map_err(kernel_lacks)?;
        Ok(Self { listeners, resolvers, _link: link })
    }

    /// A second hold on the same.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            listeners: self.listeners.iter().map(TcpListener::try_clone).collect::<io::Result<_>>()?,
            resolvers: self.resolvers.iter().map(UdpSocket::try_clone).collect::<io::Result<_>>()?,
            _link: self._link.try_clone()?,
        })
    }
}

/// Adds what a kernel has to have that knows what it was asked for. Whoever brings a kernel of his own reads this.
#[expect(clippy::needless_pass_by_value, reason = "it is for map_err")]
fn kernel_lacks(source: io::Error) -> io::Error {
    let needed = "it takes Linux 5.9 or newer with CONFIG_BPF_SYSCALL and CONFIG_INET";
    io::Error::new(source.kind(), format!("{source}; {needed}"))
}

/// Any port will do: nothing is to connect there but what is steered.
fn listen(address: IpAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(SocketAddr::new(address, 0)), Type::STREAM, None)?;
    socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.bind(&SocketAddr::new(address, 0).into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Answers come from the port that the questions went to, so it has to be this one.
fn resolve_at(address: IpAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(SocketAddr::new(address, 0)), Type::DGRAM, None)?;
    socket.set_recv_buffer_size(QUESTIONS_BYTES)?;
    socket.set_nonblocking(true)?;
    // Answers also come from the address that the question went to, whichever that was.
    if address.is_ipv4() {
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    } else {
        socket.set_freebind_v6(true)?;
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    }
    socket.bind(&SocketAddr::new(address, DNS_PORT).into())?;
    Ok(socket.into())
}

/// Ends a connection so that the program at its other end hears of a reset.
pub(super) fn reset(tcp: TcpStream) {
    // Without it the connection would come to a clean end; that is the best there is then.
    let _set = SockRef::from(&tcp).set_linger(Some(std::time::Duration::ZERO));
    drop(tcp);
}
