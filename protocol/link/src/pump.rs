// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! A byte stream that keeps reading while its writes are blocked.
//!
//! yamux stops reading while it cannot write a response. If both sides stop reading at the same time, with full buffers
//! in both directions, the link deadlocks. So the pump stores bytes that arrive while a write is blocked, and returns
//! them at the next reads. On one side of each link, the store has space for everything that an honest peer can have in
//! flight: the windows of all streams and some control frames. While the store is full, the peer has to wait.

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

/// Size of a block of the store, in bytes: the largest vsock packet. A store made of blocks stays within its limit; a
/// single buffer would grow by doubling.
const BLOCK_BYTES: usize = 64 * 1024;

/// Reads ahead from `S` while a write is blocked, to prevent a deadlock of two sides that only write.
#[derive(Debug)]
pub struct Pump<S> {
    stream: S,
    store: Store,
    arrival: Arrival,
}

/// The state of the read side after reading ahead. The end of the stream or an error is reported once the store is
/// empty.
#[derive(Debug)]
enum Arrival {
    Open,
    Ended,
    Failed(Option<io::Error>),
}

impl<S> Pump<S> {
    /// Wraps `stream`, and stores at most `stored_bytes_max` bytes while a write is blocked.
    #[must_use]
    pub fn new(stream: S, stored_bytes_max: usize) -> Self {
        let store = Store { blocks: VecDeque::new(), bytes: 0, bytes_max: stored_bytes_max };
        Self { stream, store, arrival: Arrival::Open }
    }
}

impl<S: AsyncRead + Unpin> Pump<S> {
    /// Reads everything available into the store. Registers the waker unless the store is full or the stream has ended.
    fn read_ahead(&mut self, cx: &mut Context<'_>) {
        while matches!(self.arrival, Arrival::Open) {
            let Some(mut free) = self.store.free() else { return };
            match Pin::new(&mut self.stream).poll_read(cx, &mut free) {
                Poll::Pending => return,
                Poll::Ready(Ok(())) => match free.filled().len() {
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
            // Reading from the store never waits. Without this line a reader could starve all other tasks.
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
        this.read_ahead(cx);
        Poll::Pending
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Poll::Ready(flushed) = Pin::new(&mut this.stream).poll_flush(cx) {
            return Poll::Ready(flushed);
        }
        this.read_ahead(cx);
        Poll::Pending
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.get_mut().stream).poll_shutdown(cx))?;
        Poll::Ready(Ok(()))
    }
}

/// Stored bytes that have not been read.
#[derive(Debug)]
struct Store {
    /// The oldest block comes first. The last block is kept for reuse when it is empty.
    blocks: VecDeque<Block>,
    bytes: usize,
    bytes_max: usize,
}

#[derive(Debug)]
struct Block {
    bytes: Box<[u8]>,
    /// The bytes from `taken` to `filled` have not been read.
    taken: usize,
    filled: usize,
}

impl Store {
    /// Returns free space to read into, or `None` if the store is full.
    fn free(&mut self) -> Option<ReadBuf<'_>> {
        let left = self.bytes_max.saturating_sub(self.bytes);
        if left == 0 {
            return None;
        }
        if self.blocks.back().is_none_or(|last| last.filled == last.bytes.len()) {
            let bytes = vec![0; BLOCK_BYTES.min(self.bytes_max)].into_boxed_slice();
            self.blocks.push_back(Block { bytes, taken: 0, filled: 0 });
        }
        let last = self.blocks.back_mut()?;
        let free = last.bytes.get_mut(last.filled..)?;
        let left = left.min(free.len());
        free.get_mut(..left).map(ReadBuf::new)
    }

    /// Marks bytes of the [`Self::free`] space as filled.
    fn filled(&mut self, bytes: usize) {
        self.bytes += bytes;
        if let Some(last) = self.blocks.back_mut() {
            last.filled += bytes;
        }
    }

    /// Moves bytes of the oldest block into `buffer`.
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
