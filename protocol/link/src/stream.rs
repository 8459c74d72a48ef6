// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! One stream of a link.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt};

use crate::backlog::Backlog;

/// One stream of a link. Dropping it resets it, unless it was finished.
#[derive(Debug)]
pub struct Stream {
    stream: Compat<yamux::Stream>,
    backlog: Arc<Backlog>,
    number: u64,
}

impl Stream {
    pub(crate) fn new(stream: yamux::Stream, backlog: Arc<Backlog>) -> Self {
        let number = backlog.enter();
        Self { stream: stream.compat(), backlog, number }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.backlog.poll_room(this.number, cx));
        let handed = ready!(Pin::new(&mut this.stream).poll_write(cx, bytes))?;
        this.backlog.handed(handed);
        Poll::Ready(Ok(handed))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.backlog.leave(self.number);
    }
}
