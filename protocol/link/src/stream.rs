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

/// The counts of a link's buffered bytes, outgoing and incoming. The link's streams and driver share these counts.
#[derive(Debug)]
pub(crate) struct BufferCounts {
    pub(crate) backlog: Backlog,
    pub(crate) unread: Unread,
}

/// A stream of a link. Dropping a stream resets it, unless it was finished.
#[derive(Debug)]
pub struct Stream {
    stream: Compat<yamux::Stream>,
    counts: Arc<BufferCounts>,
    /// The stream's id in yamux.
    id: u32,
    /// The stream's number in the backlog.
    number: u64,
}

impl Stream {
    pub(crate) fn new(stream: yamux::Stream, counts: Arc<BufferCounts>) -> Self {
        let (id, number) = (stream.id().val(), counts.backlog.register());
        counts.unread.register(id);
        Self { stream: stream.compat(), counts, id, number }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        this.counts.unread.read(this.id, buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.counts.backlog.poll_capacity(this.number, cx));
        let queued = ready!(Pin::new(&mut this.stream).poll_write(cx, bytes))?;
        this.counts.backlog.queued(queued);
        Poll::Ready(Ok(queued))
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
        self.counts.backlog.deregister(self.number);
        self.counts.unread.mark_dropped(self.id);
    }
}
