// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The sockets with which the agent takes part in handshakes: packet sockets that capture the programs' packets, and
//! raw sockets that send packets in the name of remote servers.
//!
//! PID 1 opens them, which needs the capability NET_RAW. Using them needs none.

use std::{
    io,
    net::{IpAddr, SocketAddr, SocketAddrV6},
    os::fd::{AsRawFd, OwnedFd},
    task::{Context, Poll},
};

use nix::{
    errno::Errno,
    libc,
    net::if_::if_nametoindex,
    sys::socket::{MsgFlags, recv},
};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    filter::{self, MARK},
    packet::{Captured, PACKET_BYTES_MAX, Packet, parse},
};
use crate::sys;

/// Size of the buffer for captured packets of one address family, for some hundred SYNs; the kernel doubles it. The
/// kernel repeats a SYN that is lost.
const CAPTURED_BYTES: usize = 256 * 1024;

/// Maximum number of packets that are read at a time: about as many as the kernel buffers. A program that sends without
/// pause does not keep the agent from its other work.
const BATCH: usize = 512;

/// The protocol number of raw sockets whose user supplies the IP header. Such a socket receives nothing.
const RAW: libc::c_int = libc::IPPROTO_RAW;

/// The open sockets.
#[derive(Debug)]
pub(crate) struct WireSockets {
    /// The capturing socket and the sending socket of each address family.
    families: Vec<(Socket, Socket)>,
}

impl WireSockets {
    pub(crate) fn open(ipv6: bool) -> io::Result<Self> {
        let open = |own| Ok((open_capture(own)?, open_sender(own)?));
        Ok(Self { families: filter::own_addresses(ipv6).map(open).collect::<io::Result<_>>()? })
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        let clone = |(capture, sender): &(Socket, Socket)| Ok((capture.try_clone()?, sender.try_clone()?));
        Ok(Self { families: self.families.iter().map(clone).collect::<io::Result<_>>()? })
    }
}

/// Drops each SYN to the listening socket that the agent has not sent.
pub(crate) fn accept_only_marked(listener: &Socket) -> io::Result<()> {
    listener.attach_filter(&filter::listener())
}

/// Removes the listener's filter from an accepted connection, which inherits it.
pub(super) fn accept_all(tcp: &tokio::net::TcpStream) {
    // The filter would only cost time: it passes the packets of established connections.
    let _detached = SockRef::from(tcp).detach_filter();
}

/// Opens a socket that gets packets from their IP header on. It has no packet before it has its filter, because no
/// program runs yet.
fn open_capture(own: IpAddr) -> io::Result<Socket> {
    let kind = if own.is_ipv4() { libc::ETH_P_IP } else { libc::ETH_P_IPV6 };
    let in_network_order = u16::try_from(kind).map_err(io::Error::other)?.to_be();
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(libc::c_int::from(in_network_order))))?;
    socket.attach_filter(&filter::capture(own))?;
    socket.set_recv_buffer_size(CAPTURED_BYTES)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn open_sender(own: IpAddr) -> io::Result<Socket> {
    let domain = Domain::for_address(SocketAddr::new(own, 0));
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(RAW)))?;
    socket.set_mark(MARK)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// The sockets in the network process's runtime.
#[derive(Debug)]
pub(super) struct Wire {
    captures: Vec<AsyncFd<OwnedFd>>,
    senders: Vec<Socket>,
    loopback: u32,
}

impl Wire {
    pub(super) fn new(sockets: WireSockets) -> io::Result<Self> {
        let (captures, senders): (Vec<_>, Vec<_>) = sockets.families.into_iter().unzip();
        let watch = |capture: Socket| sys::watch(capture.into(), Interest::READABLE);
        let captures = captures.into_iter().map(watch).collect::<io::Result<_>>()?;
        Ok(Self { captures, senders, loopback: if_nametoindex("lo")? })
    }

    /// Waits for packets, and returns some of each address family that has any.
    pub(super) fn poll_captured(&self, cx: &mut Context<'_>) -> Poll<Vec<Captured>> {
        let mut all = Vec::new();
        for capture in &self.captures {
            // The wait fails only if the runtime is shut down.
            while let Poll::Ready(Ok(mut ready)) = capture.poll_read_ready(cx) {
                let captured = receive(capture.get_ref());
                if captured.is_empty() {
                    ready.clear_ready();
                } else {
                    all.extend(captured);
                    break;
                }
            }
        }
        if all.is_empty() { Poll::Pending } else { Poll::Ready(all) }
    }

    /// Returns the packets that have arrived.
    pub(super) fn captured(&self) -> Vec<Captured> {
        self.captures.iter().flat_map(|capture| receive(capture.get_ref())).collect()
    }

    /// Sends a packet to this machine. An error is ignored: the program's kernel repeats its SYN.
    pub(super) fn send(&self, packet: &Packet) {
        let to = match packet.to {
            IpAddr::V4(_) => SocketAddr::new(packet.to, 0),
            // The kernel ignores the scope except for link-local addresses.
            IpAddr::V6(to) => SocketAddrV6::new(to, 0, 0, self.loopback).into(),
        };
        let sender = if packet.to.is_ipv4() { self.senders.first() } else { self.senders.get(1) };
        let _sent = sender.map(|sender| sender.send_to(&packet.bytes, &to.into()));
    }
}

/// Receives the packets that a socket has, at most [`BATCH`]. Invalid packets are left out.
fn receive(socket: &OwnedFd) -> Vec<Captured> {
    let mut captured = Vec::new();
    let mut packet = [0; PACKET_BYTES_MAX];
    for _ in 0..BATCH {
        match recv(socket.as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT) {
            Ok(bytes) => captured.extend(packet.get(..bytes).and_then(parse)),
            Err(Errno::EINTR) => {}
            Err(_none) => break,
        }
    }
    captured
}
