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

use crate::{backlog::Backlog, unread::Unread};

/// What a link's streams share with its driver.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) backlog: Backlog,
    pub(crate) unread: Unread,
}

/// One stream of a link. Dropping it resets it, unless it was finished.
#[derive(Debug)]
pub struct Stream {
    stream: Compat<yamux::Stream>,
    shared: Arc<Shared>,
    id: u32,
    number: u64,
}

impl Stream {
    pub(crate) fn new(stream: yamux::Stream, shared: Arc<Shared>) -> Self {
        let (id, number) = (stream.id().val(), shared.backlog.enter());
        shared.unread.enter(id);
        Self { stream: stream.compat(), shared, id, number }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        this.shared.unread.read(this.id, buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.shared.backlog.poll_room(this.number, cx));
        let handed = ready!(Pin::new(&mut this.stream).poll_write(cx, bytes))?;
        this.shared.backlog.handed(handed);
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
        self.shared.backlog.leave(self.number);
        self.shared.unread.leave(self.id);
    }
}
