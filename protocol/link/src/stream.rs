// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The handle to one stream of a link.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::coop,
};

use crate::state::Shared;

/// A stream of a link. Dropping a stream closes it, which is a reset unless the stream was shut down. After a shutdown,
/// the data that was written is still sent. A peer that closes the stream makes reads fail unless it had shut down.
#[derive(Debug)]
pub struct Stream {
    shared: Arc<Shared>,
    number: u32,
}

impl Stream {
    pub(crate) fn new(shared: Arc<Shared>, number: u32) -> Self {
        Self { shared, number }
    }

    /// Waits until the peer or the link's end has reset the stream. Does not resolve once both sides have ended their
    /// data, because then nothing is left to reset.
    pub(crate) async fn until_reset(&self) {
        poll_fn(|cx| self.shared.with(|state| state.poll_reset(self.number, cx))).await;
    }

    /// Takes all received data; empty at the end of the data. Until the caller reports the data as consumed, the data
    /// counts as buffered.
    pub(crate) async fn take(&self) -> io::Result<VecDeque<u8>> {
        poll_fn(|cx| {
            self.shared.with(|state| {
                ready!(state.poll_readable(self.number, cx))?;
                Poll::Ready(Ok(state.take(self.number)))
            })
        })
        .await
    }

    pub(crate) fn consumed(&self, bytes: usize) {
        self.shared.with(|state| state.consumed(self.number, bytes));
    }

    /// Waits until data can be written without waiting. Returns the number of bytes.
    pub(crate) fn poll_capacity(&self, cx: &Context<'_>) -> Poll<io::Result<usize>> {
        self.shared.with(|state| state.poll_capacity(self.number, cx))
    }

    /// Writes data, which must not exceed the capacity.
    pub(crate) fn push(&self, bytes: &[u8]) {
        self.shared.with(|state| state.push(self.number, bytes));
    }

    /// Ends this side's data.
    pub(crate) fn end(&self) {
        self.shared.with(|state| state.end_stream(self.number));
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.with(|state| state.close(self.number));
    }
}

// Reading and writing never wait for I/O, only for the driver. Without the budget, a fast peer would prevent a task
// from ever yielding, even to check its own timeout.
impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let budget = ready!(coop::poll_proceed(cx));
        self.shared.with(|state| {
            ready!(state.poll_readable(self.number, cx))?;
            state.read(self.number, buffer);
            budget.made_progress();
            Poll::Ready(Ok(()))
        })
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let budget = ready!(coop::poll_proceed(cx));
        self.shared.with(|state| {
            let capacity = ready!(state.poll_capacity(self.number, cx))?;
            let fits = bytes.get(..capacity).unwrap_or(bytes);
            state.push(self.number, fits);
            budget.made_progress();
            Poll::Ready(Ok(fits.len()))
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end();
        Poll::Ready(Ok(()))
    }
}
