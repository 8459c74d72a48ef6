// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The connection of a program. One task can read and write while another waits for a reset.

use std::{
    io,
    net::Shutdown,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};

/// A connection that can be read and written through shared references.
#[derive(Debug)]
pub(super) struct Connection(TcpStream);

impl Connection {
    pub(super) fn new(tcp: TcpStream) -> Self {
        // Small pieces from the host must be sent to the program at once. The connection also works without the option.
        let _set = tcp.set_nodelay(true);
        Self(tcp)
    }

    /// Resolves when the program has reset the connection, even if no task reads or writes.
    pub(super) async fn broken(&self) {
        // The wait fails only if the runtime is shut down.
        let _broken = self.0.ready(Interest::ERROR).await;
    }

    /// Ends the connection with a reset.
    pub(super) fn reset(self) {
        reset(self.0);
    }
}

/// Ends a connection with a reset.
pub(crate) fn reset(tcp: TcpStream) {
    // If the call fails, the connection ends without a reset.
    let _set = SockRef::from(&tcp).set_linger(Some(Duration::ZERO));
    drop(tcp);
}

impl AsyncRead for &Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read(buffer.initialize_unfilled()) {
                Err(fault) if fault.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read.map(|read| buffer.advance(read))),
            }
        }
    }
}

impl AsyncWrite for &Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write(bytes) {
                Err(fault) if fault.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&self.0).shutdown(Shutdown::Write))
    }
}
