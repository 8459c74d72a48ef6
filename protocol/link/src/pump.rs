// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! A byte stream that keeps reading while a write of it is blocked.
//!
//! yamux stops reading while an answer of its own can't be written. When both ends do that at once, with both
//! directions full, neither moves again. So whatever arrives while a write is blocked is taken in here, and handed out
//! at the next read. The store is bounded by what the peer may have in flight: the windows of its streams and some
//! control frames. A peer that sends more than that waits, which is right: it breaks yamux's rules.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::coop,
};

/// The store grows by this much at a time, in bytes: one large vsock packet. Growing by blocks keeps a full store at
/// its bound, where one long buffer would double.
const BLOCK_BYTES: usize = 64 * 1024;

/// Wraps `S`; see the module.
#[derive(Debug)]
pub struct Pump<S> {
    stream: S,
    store: Store,
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
        let store = Store { blocks: VecDeque::new(), bytes: 0, bytes_max: stored_bytes_max };
        Self { stream, store, arrival: Arrival::Open }
    }
}

impl<S: AsyncRead + Unpin> Pump<S> {
    /// Reads what is there. The stream's waker is registered unless the store is full or the stream is over.
    fn take_in(&mut self, cx: &mut Context<'_>) {
        while matches!(self.arrival, Arrival::Open) {
            let Some(mut room) = self.store.room() else { return };
            match Pin::new(&mut self.stream).poll_read(cx, &mut room) {
                Poll::Pending => return,
                Poll::Ready(Ok(())) => match room.filled().len() {
                    0 => self.arrival = Arrival::Ended,
                    read => self.store.filled(read),
                },
                Poll::Ready(Err(fault)) => self.arrival = Arrival::Failed(Some(fault)),
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Pump<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.store.bytes > 0 {
            // The store is memory and always ready: without this its reader would keep everyone else from running.
            let budget = ready!(coop::poll_proceed(cx));
            this.store.take(buffer);
            budget.made_progress();
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

/// What was taken in and not yet handed out.
#[derive(Debug)]
struct Store {
    /// Oldest first. Once there is a block, one stays, empty or not, for the next time.
    blocks: VecDeque<Block>,
    bytes: usize,
    bytes_max: usize,
}

#[derive(Debug)]
struct Block {
    bytes: Box<[u8]>,
    /// What lies from here on up to `filled` has not been handed out.
    taken: usize,
    filled: usize,
}

impl Store {
    /// Where more can be put; none if the store is full.
    fn room(&mut self) -> Option<ReadBuf<'_>> {
        let room = self.bytes_max.saturating_sub(self.bytes);
        if room == 0 {
            return None;
        }
        if self.blocks.back().is_none_or(|last| last.filled == last.bytes.len()) {
            let bytes = vec![0; BLOCK_BYTES.min(self.bytes_max)].into_boxed_slice();
            self.blocks.push_back(Block { bytes, taken: 0, filled: 0 });
        }
        let last = self.blocks.back_mut()?;
        let free = last.bytes.get_mut(last.filled..)?;
        let room = room.min(free.len());
        free.get_mut(..room).map(ReadBuf::new)
    }

    /// So many bytes were put into the [`Self::room`].
    fn filled(&mut self, bytes: usize) {
        self.bytes += bytes;
        if let Some(last) = self.blocks.back_mut() {
            last.filled += bytes;
        }
    }

    /// Hands out what fits, from one block.
    fn take(&mut self, buffer: &mut ReadBuf<'_>) {
        let Some(first) = self.blocks.front_mut() else { return };
        let stored = first.bytes.get(first.taken..first.filled).unwrap_or_default();
        let taken = stored.len().min(buffer.remaining());
        buffer.put_slice(stored.get(..taken).unwrap_or_default());
        first.taken += taken;
        self.bytes -= taken;
        if first.taken < first.filled {
            return;
        }
        (first.taken, first.filled) = (0, 0);
        if self.blocks.len() > 1 {
            self.blocks.pop_front();
        }
    }
}
