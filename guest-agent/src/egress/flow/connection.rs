// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! A program's connection, which can be read and written while somebody else waits for it to break.

use std::{
    io,
    net::Shutdown,
    pin::Pin,
    task::{Context, Poll, ready},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};

use crate::egress::sockets;

/// The connection; a shared reference to it reads and writes.
#[derive(Debug)]
pub(super) struct Connection(TcpStream);

impl Connection {
    pub(super) fn new(tcp: TcpStream) -> Self {
        // What the host sends in small pieces is to arrive so; a connection that can't be told is carried all the same.
        let _prompt = tcp.set_nodelay(true);
        Self(tcp)
    }

    /// Resolves when the program has reset the connection, whether or not anything reads or writes.
    pub(super) async fn broken(&self) {
        // It fails only together with the runtime.
        let _broken = self.0.ready(Interest::ERROR).await;
    }

    /// Ends the connection so that the program hears of a reset.
    pub(super) fn reset(self) {
        sockets::reset(self.0);
    }
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
