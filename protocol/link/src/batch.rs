// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! A byte stream that moves bytes in few, large pieces.
//!
//! yamux writes a frame's header and its body apart, and reads them so. On vsock each of those would be a packet, with
//! an interrupt on either side. So what is written is gathered until there is a packet's worth, or until the reader
//! asks the stream itself for more: yamux does so whenever it has nothing left to write. And one read of the stream
//! serves many small ones.
//!
//! Flushing does nothing here, on purpose: yamux flushes after each frame.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Gathered before it is written, in bytes: the largest vsock packet.
const GATHERED_BYTES_MAX: usize = 64 * 1024;

/// Read from the stream at a time, in bytes: the largest vsock packet.
const AHEAD_BYTES_MAX: usize = 64 * 1024;

/// Wraps `S`; see the module.
#[derive(Debug)]
pub(crate) struct Batch<S> {
    stream: S,
    /// To be written; `sent` bytes of it are.
    gathered: Vec<u8>,
    sent: usize,
    /// Read from the stream; what lies from `taken` up to `filled` has not been handed out.
    ahead: Box<[u8]>,
    taken: usize,
    filled: usize,
}

impl<S> Batch<S> {
    /// Wraps `stream`.
    pub(crate) fn new(stream: S) -> Self {
        let ahead = vec![0; AHEAD_BYTES_MAX].into_boxed_slice();
        Self { stream, gathered: Vec::with_capacity(GATHERED_BYTES_MAX), sent: 0, ahead, taken: 0, filled: 0 }
    }
}

impl<S: AsyncWrite + Unpin> Batch<S> {
    /// Writes what is gathered.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.gathered.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.sent += written,
            }
        }
        self.gathered.clear();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Batch<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.taken == this.filled {
            if let Poll::Ready(Err(fault)) = this.poll_send(cx) {
                return Poll::Ready(Err(fault));
            }
            if buffer.remaining() >= this.ahead.len() {
                return Pin::new(&mut this.stream).poll_read(cx, buffer);
            }
            let mut ahead = ReadBuf::new(&mut this.ahead);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut ahead))?;
            (this.taken, this.filled) = (0, ahead.filled().len());
        }
        let read = this.ahead.get(this.taken..this.filled).unwrap_or_default();
        let taken = read.len().min(buffer.remaining());
        buffer.put_slice(read.get(..taken).unwrap_or_default());
        this.taken += taken;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Batch<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.gathered.len() >= GATHERED_BYTES_MAX {
            ready!(this.poll_send(cx))?;
        }
        let fits = bytes.len().min(GATHERED_BYTES_MAX.saturating_sub(this.gathered.len()));
        this.gathered.extend_from_slice(bytes.get(..fits).unwrap_or_default());
        Poll::Ready(Ok(fits))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// More than either buffer holds.
    const FLOOD_BYTES: usize = 3 * GATHERED_BYTES_MAX + 5;

    #[tokio::test]
    async fn what_was_written_goes_out_in_one_piece_when_more_is_read() {
        let (mut far, near) = duplex(1024);
        let mut batch = Batch::new(near);
        for part in [b"header".as_slice(), b"body"] {
            batch.write_all(part).await.unwrap();
        }
        batch.flush().await.unwrap();
        far.write_all(b"answer").await.unwrap();
        let mut answer = [0; 6];
        for byte in answer.chunks_mut(1) {
            batch.read_exact(byte).await.unwrap();
        }
        assert_eq!(&answer, b"answer");
        let mut arrived = [0; 16];
        assert_eq!(far.read(&mut arrived).await.unwrap(), 10);
        assert_eq!(&arrived[..10], b"headerbody");
    }

    #[tokio::test]
    async fn a_flood_through_a_narrow_stream_arrives_whole() {
        let (mut far, near) = duplex(100);
        let flood: Vec<u8> = (0..FLOOD_BYTES).map(|at| at.to_le_bytes()[0]).collect();
        let expected = flood.clone();
        let sending = tokio::spawn(async move {
            let mut batch = Batch::new(near);
            batch.write_all(&flood).await.unwrap();
            batch.shutdown().await.unwrap();
        });
        let mut arrived = Vec::new();
        far.read_to_end(&mut arrived).await.unwrap();
        sending.await.unwrap();
        assert!(arrived == expected);
    }
}
