// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Connects the guest's vsock connections to Unix sockets of the run folder.

use std::{
    io::{self, Read, Write},
    net::Shutdown,
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use msb_krun::backends::vsock::{
    VsockConnectRequest, VsockNotifier, VsockPortBackend, VsockShutdown, VsockStreamBackend,
};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// Maximum number of connections of a machine. The agent needs two. Closed ones count until `msb_krun` drops them.
/// `msb_krun` buffers up to 8 MiB for each connection that the host does not read.
const CONNECTIONS_MAX: usize = 8;

/// The number of connections of one machine.
#[derive(Clone, Debug, Default)]
pub(super) struct Links(Arc<AtomicUsize>);

impl Links {
    /// Returns the backend of a vsock port whose connections lead to the Unix socket `path`.
    pub(super) fn to(&self, path: PathBuf) -> Link {
        Link { path, links: self.clone() }
    }

    /// Counts one more connection, unless there are too many.
    fn count(&self) -> io::Result<Counted> {
        let more = |count| (count < CONNECTIONS_MAX).then_some(count + 1);
        let counted = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        counted.map_err(|_| io::Error::other("the machine has too many connections"))?;
        Ok(Counted(self.clone()))
    }
}

/// A counted connection. Dropping it makes room for another one.
#[derive(Debug)]
struct Counted(Links);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The way to one Unix socket.
#[derive(Debug)]
pub(super) struct Link {
    path: PathBuf,
    links: Links,
}

impl Link {
    fn dial(&self) -> io::Result<Dialled> {
        let counted = self.links.count()?;
        // The connect would block if the listener's queue is full, and no other connection could go on.
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&socket, &SocketAddrUnix::new(&self.path)?)?;
        Ok(Dialled { stream: socket.into(), _counted: counted })
    }
}

impl VsockPortBackend for Link {
    fn connect(&self, _: VsockConnectRequest, _: VsockNotifier) -> io::Result<Box<dyn VsockStreamBackend>> {
        Ok(Box::new(self.dial()?))
    }
}

#[derive(Debug)]
struct Dialled {
    stream: UnixStream,
    _counted: Counted,
}

impl VsockStreamBackend for Dialled {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.stream).read(buffer)
    }

    fn write(&self, buffer: &[u8]) -> io::Result<usize> {
        (&self.stream).write(buffer)
    }

    fn shutdown(&self, how: VsockShutdown) -> io::Result<()> {
        self.stream.shutdown(match how {
            VsockShutdown::Read => Shutdown::Read,
            VsockShutdown::Write => Shutdown::Write,
            VsockShutdown::Both => Shutdown::Both,
        })
    }

    fn pollable(&self) -> Option<RawFd> {
        Some(self.stream.as_raw_fd())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn connections_of_a_machine_are_limited_until_they_are_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("link");
        let links = Links::default();
        let link = links.to(path.clone());
        assert!(link.dial().is_err(), "no listener");
        let listener = UnixListener::bind(&path).unwrap();
        let mut dialled: Vec<_> = (0..CONNECTIONS_MAX).map(|_| link.dial().unwrap()).collect();
        assert!(links.to(path).dial().is_err(), "too many");
        dialled.pop();
        assert!(link.dial().is_ok());
        drop(listener);
    }

    #[test]
    fn host_receives_what_the_guest_writes_and_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("link");
        let listener = UnixListener::bind(&path).unwrap();
        let dialled = Links::default().to(path).dial().unwrap();
        let (mut host, _) = listener.accept().unwrap();
        assert_eq!(dialled.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(dialled.write(b"hello").unwrap(), 5);
        dialled.shutdown(VsockShutdown::Write).unwrap();
        let mut received = String::new();
        host.read_to_string(&mut received).unwrap();
        assert_eq!(received, "hello");
    }
}
