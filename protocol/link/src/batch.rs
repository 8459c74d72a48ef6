// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! A byte stream that moves bytes in few, large pieces.
//!
//! yamux writes and reads the header and the body of a frame separately. On vsock each of these writes would be a
//! packet, with an interrupt on both sides. So writes are gathered until they fill a packet, or until a read needs more
//! data from the stream. yamux reads whenever it has nothing left to write. One large read of the stream serves many
//! small reads.
//!
//! Flushing does nothing on purpose, because yamux flushes after each frame.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};

/// Size of the largest vsock packet, in bytes. Also the size of a gathered write and of a read from the stream.
const PACKET_BYTES_MAX: usize = 64 * 1024;

/// Gathers small reads and writes of `S` into large ones.
#[derive(Debug)]
pub(crate) struct Batch<S> {
    stream: BufReader<S>,
    /// Bytes to write. The first `sent` bytes have been written.
    gathered: Vec<u8>,
    sent: usize,
}

impl<S: AsyncRead> Batch<S> {
    pub(crate) fn new(stream: S) -> Self {
        let stream = BufReader::with_capacity(PACKET_BYTES_MAX, stream);
        Self { stream, gathered: Vec::with_capacity(PACKET_BYTES_MAX), sent: 0 }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Batch<S> {
    /// Writes the gathered bytes.
    fn poll_write_gathered(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
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
        if this.stream.buffer().is_empty()
            && let Poll::Ready(Err(fault)) = this.poll_write_gathered(cx)
        {
            return Poll::Ready(Err(fault));
        }
        Pin::new(&mut this.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Batch<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.gathered.len() >= PACKET_BYTES_MAX {
            ready!(this.poll_write_gathered(cx))?;
        }
        let fits = bytes.len().min(PACKET_BYTES_MAX.saturating_sub(this.gathered.len()));
        this.gathered.extend_from_slice(bytes.get(..fits).unwrap_or_default());
        Poll::Ready(Ok(fits))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_write_gathered(cx))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// More bytes than both buffers can store.
    const FLOOD_BYTES: usize = 3 * PACKET_BYTES_MAX + 5;

    #[tokio::test]
    async fn gathered_writes_go_out_in_one_piece_at_the_next_read() {
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
    async fn large_write_through_a_narrow_stream_arrives_whole() {
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
