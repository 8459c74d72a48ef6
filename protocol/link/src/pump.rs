// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! A byte stream that keeps reading while a write of it is blocked.
//!
//! yamux stops reading while an answer of its own can't be written. When both ends do that at once, with both
//! directions full, neither moves again. So whatever arrives while a write is blocked is taken in here, and handed out
//! at the next read. The store is bounded by what the peer may have in flight: the windows of its streams and some
//! control frames. A peer that sends more than that waits, which is right: it breaks yamux's rules.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Taken from the stream at a time, in bytes: one large vsock packet.
const READ_BYTES: usize = 64 * 1024;

/// Wraps `S`; see the module.
#[derive(Debug)]
pub struct Pump<S> {
    stream: S,
    stored: std::collections::VecDeque<u8>,
    stored_bytes_max: usize,
    scratch: Box<[u8]>,
    arrival: Arrival,
}

/// What reading the stream came to while a write was blocked; told to the reader once the store is empty.
#[derive(Debug)]
enum Arrival {
    Open,
    Ended,
    Failed(Option<io::Error>),
}

impl<S> Pump<S> {
    /// Wraps `stream`; takes in at most `stored_bytes_max` bytes while a write is blocked.
    #[must_use]
    pub fn new(stream: S, stored_bytes_max: usize) -> Self {
        let scratch = vec![0; READ_BYTES].into_boxed_slice();
        Self { stream, stored: std::collections::VecDeque::new(), stored_bytes_max, scratch, arrival: Arrival::Open }
    }
}

impl<S: AsyncRead + Unpin> Pump<S> {
    /// Reads what is there. The stream's waker is registered unless the store is full or the stream is over.
    fn take_in(&mut self, cx: &mut Context<'_>) {
        while matches!(self.arrival, Arrival::Open) {
            let room = self.stored_bytes_max.saturating_sub(self.stored.len()).min(self.scratch.len());
            let Some(scratch) = self.scratch.get_mut(..room).filter(|scratch| !scratch.is_empty()) else { return };
            let mut buffer = ReadBuf::new(scratch);
            match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
                Poll::Pending => return,
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => self.arrival = Arrival::Ended,
                Poll::Ready(Ok(())) => self.stored.extend(buffer.filled()),
                Poll::Ready(Err(fault)) => self.arrival = Arrival::Failed(Some(fault)),
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Pump<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let (front, _) = this.stored.as_slices();
        if !front.is_empty() {
            let taken = front.len().min(buffer.remaining());
            buffer.put_slice(front.get(..taken).unwrap_or_default());
            this.stored.drain(..taken);
            if this.stored.is_empty() {
                this.stored.shrink_to(READ_BYTES);
            }
            return Poll::Ready(Ok(()));
        }
        match &mut this.arrival {
            Arrival::Open => Pin::new(&mut this.stream).poll_read(cx, buffer),
            Arrival::Ended => Poll::Ready(Ok(())),
            Arrival::Failed(fault) => match fault.take() {
                Some(fault) => Poll::Ready(Err(fault)),
                None => Poll::Ready(Ok(())),
            },
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Pump<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Poll::Ready(written) = Pin::new(&mut this.stream).poll_write(cx, bytes) {
            return Poll::Ready(written);
        }
        this.take_in(cx);
        Poll::Pending
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Poll::Ready(flushed) = Pin::new(&mut this.stream).poll_flush(cx) {
            return Poll::Ready(flushed);
        }
        this.take_in(cx);
        Poll::Pending
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.get_mut().stream).poll_shutdown(cx))?;
        Poll::Ready(Ok(()))
    }
}
