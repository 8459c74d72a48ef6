// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The host's end of one link of a machine: a Unix socket in the run folder.
//!
//! With vsock, the guest connects once for each generation of the link. A virtio-serial port has a single connection,
//! which the runner makes before QEMU starts, and which carries all generations. Then the socket accepts no other
//! connection.

use std::{
    io,
    os::{fd::AsRawFd, unix::net::UnixStream as StdUnixStream},
    path::Path,
};

use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, bind, listen, recv, socket_with};
use tokio::net::{UnixListener, UnixStream};
use waggle_link::Past;
use waggle_protocol::boot::Transport;

use super::file_names::LINK_SOCKETS;

/// Maximum number of connections that wait to be accepted, but for one: the kernel accepts one more. A guest can open
/// hundreds over vsock, and the kernel keeps up to 208 KiB of data that it sends on each.
const WAITING_MAX: i32 = 1;

#[derive(Debug)]
pub(super) enum LinkSource {
    /// Each generation of the link has its own connection.
    Vsock(UnixListener),
    /// The connection of the port has not arrived. The guest on its other end may have used another one before.
    NewPort(UnixListener, Past),
    /// All generations share the connection of the port.
    Port(StdUnixStream),
}

impl LinkSource {
    /// Listens on the socket for the link of `port`. `past` is that of a virtio-serial port's guest.
    ///
    /// # Errors
    /// The kernel's error.
    pub(super) fn listen(run_dir: &Path, port: u32, transport: Transport, past: Past) -> io::Result<Self> {
        // The path of a Unix socket has at most 107 bytes. A path through the open folder's descriptor always fits.
        let folder = std::fs::File::open(run_dir)?;
        let path = format!("/proc/self/fd/{}/{LINK_SOCKETS}_{port}", folder.as_raw_fd());
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        bind(&socket, &SocketAddrUnix::new(path)?)?;
        listen(&socket, WAITING_MAX)?;
        let listener = UnixListener::from_std(socket.into())?;
        Ok(match transport {
            Transport::Vsock => Self::Vsock(listener),
            Transport::Serial => Self::NewPort(listener, past),
        })
    }

    /// Returns true if no further generation can begin, because QEMU has closed its end of the port.
    pub(super) fn has_ended(&self) -> bool {
        let Self::Port(port) = self else { return false };
        matches!(recv(port, &mut [0], RecvFlags::PEEK | RecvFlags::DONTWAIT), Ok((_, 0)))
    }

    /// Waits for the stream of the next generation. Dropping the stream ends a connection over vsock, but leaves a port
    /// open. Cancel-safe.
    ///
    /// # Errors
    /// The kernel's error.
    pub(super) async fn next(&mut self) -> io::Result<(UnixStream, Past)> {
        let past = match self {
            Self::Vsock(listener) => return Ok((listener.accept().await?.0, Past::None)),
            Self::NewPort(listener, past) => {
                let (stream, past) = (listener.accept().await?.0, *past);
                *self = Self::Port(stream.into_std()?);
                past
            }
            Self::Port(_) => Past::Unknown,
        };
        match self {
            Self::Port(port) => Ok((UnixStream::from_std(port.try_clone()?)?, past)),
            Self::Vsock(_) | Self::NewPort(..) => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn port_ends_with_its_only_connection_and_not_before() {
        let folder = tempfile::tempdir().unwrap();
        let mut source = LinkSource::listen(folder.path(), 7, Transport::Serial, Past::None).unwrap();
        let path = folder.path().join("link_7");
        let qemu = UnixStream::connect(&path).await.unwrap();
        assert_eq!(source.next().await.unwrap().1, Past::None);
        assert_eq!(source.next().await.unwrap().1, Past::Unknown);
        let refused = UnixStream::connect(&path).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert!(!source.has_ended());
        qemu.try_write(b"unread").unwrap();
        assert!(!source.has_ended());
        let (stream, _) = source.next().await.unwrap();
        stream.readable().await.unwrap();
        stream.try_read(&mut [0; 6]).unwrap();
        drop(qemu);
        assert!(source.has_ended());
    }

    #[tokio::test]
    async fn only_few_connections_wait_to_be_accepted() {
        let folder = tempfile::tempdir().unwrap();
        let mut source = LinkSource::listen(folder.path(), 7, Transport::Vsock, Past::None).unwrap();
        let path = folder.path().join("link_7");
        let mut guests = Vec::new();
        let refused = loop {
            match UnixStream::connect(&path).await {
                Ok(guest) if guests.len() < 10 => guests.push(guest),
                Ok(_) => panic!("ten connections wait"),
                Err(fault) => break fault,
            }
        };
        assert_eq!((refused.kind(), guests.len()), (io::ErrorKind::WouldBlock, 2));
        source.next().await.unwrap();
        UnixStream::connect(&path).await.unwrap();
    }

    #[tokio::test]
    async fn each_generation_over_vsock_has_its_own_connection() {
        let folder = tempfile::tempdir().unwrap();
        let mut source = LinkSource::listen(folder.path(), 7, Transport::Vsock, Past::None).unwrap();
        for _ in 0..2 {
            let guest = UnixStream::connect(folder.path().join("link_7")).await.unwrap();
            assert_eq!(source.next().await.unwrap().1, Past::None);
            drop(guest);
            assert!(!source.has_ended());
        }
    }
}
