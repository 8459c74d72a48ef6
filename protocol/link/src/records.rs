// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The data of one generation as records, over a byte stream that may also carry other bytes.
//!
//! Writes are gathered until they fill a record or are flushed. One large read of the stream serves many small reads.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use waggle_protocol::generation::{LENGTH_BYTES, RECORD_BODY_BYTES_MAX, TAG_BYTES, Tag};

use crate::breach::Breach;

/// Size of the buffer for reads from the stream, in bytes: at least two records, so that a large read is possible while
/// a record is incomplete.
const INPUT_BYTES: usize = 64 * 1024;

/// Carries a byte stream in the records of one generation over `S`.
///
/// Reads deliver only complete records. A record that is invalid, or that has the tag of another generation, is an
/// error with a [`Breach`].
#[derive(Debug)]
pub struct Records<S> {
    stream: S,
    tag: Tag,
    input: Input,
    /// Bytes of the current incoming record that have not been delivered.
    body_left: usize,
    /// The outgoing record. The first bytes are reserved for its length.
    output: Vec<u8>,
    /// The part of `output` that was written. `output` accepts no more data until it is written completely.
    written: Option<usize>,
}

impl<S> Records<S> {
    /// Wraps a stream on which the generation of `tag` has begun. `input` has the bytes that were read already.
    pub(crate) fn new(stream: S, tag: Tag, input: Input) -> Self {
        let mut output = Vec::with_capacity(LENGTH_BYTES + RECORD_BODY_BYTES_MAX + TAG_BYTES);
        output.extend([0; LENGTH_BYTES]);
        Self { stream, tag, input, body_left: 0, output, written: None }
    }

    /// Returns the stream. Gathered and unread data is lost.
    pub fn into_inner(self) -> S {
        self.stream
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Records<S> {
    /// Writes the gathered data as one record.
    fn poll_write_record(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut written = match self.written {
            Some(written) => written,
            None if self.output.len() == LENGTH_BYTES => return Poll::Ready(Ok(())),
            None => {
                let length = u32::try_from(self.output.len() - LENGTH_BYTES).unwrap_or(u32::MAX);
                if let Some(field) = self.output.first_chunk_mut::<LENGTH_BYTES>() {
                    *field = length.to_le_bytes();
                }
                self.output.extend(self.tag);
                *self.written.insert(0)
            }
        };
        while let Some(rest) = self.output.get(written..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                more => written += more,
            }
            self.written = Some(written);
        }
        self.output.truncate(LENGTH_BYTES);
        self.written = None;
        Poll::Ready(Ok(()))
    }

    /// Reads until the next record is complete. Returns false at the end of the stream.
    fn poll_next_record(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        loop {
            if let Some(body) = self.input.record(self.tag)? {
                self.body_left = body;
                return Poll::Ready(Ok(true));
            }
            let is_empty = self.input.bytes().is_empty();
            if ready!(self.input.poll_fill(Pin::new(&mut self.stream), cx))? == 0 {
                let end = if is_empty { Ok(false) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
                return Poll::Ready(end);
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Records<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.body_left == 0 && !ready!(this.poll_next_record(cx))? {
            return Poll::Ready(Ok(()));
        }
        let taken = this.body_left.min(buffer.remaining());
        buffer.put_slice(this.input.bytes().get(..taken).unwrap_or_default());
        this.input.consume(taken);
        this.body_left -= taken;
        if this.body_left == 0 {
            this.input.consume(TAG_BYTES);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Records<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let body_bytes_max = LENGTH_BYTES + RECORD_BODY_BYTES_MAX;
        if this.written.is_some() || this.output.len() == body_bytes_max {
            ready!(this.poll_write_record(cx))?;
        }
        let fitting = bytes.get(..bytes.len().min(body_bytes_max - this.output.len())).unwrap_or(bytes);
        this.output.extend_from_slice(fitting);
        Poll::Ready(Ok(fitting.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_write_record(cx))?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_write_record(cx))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}

/// Bytes that were read from a stream and not used yet.
#[derive(Debug)]
pub(crate) struct Input {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Input {
    pub(crate) fn new() -> Self {
        Self { buffer: vec![0; INPUT_BYTES].into_boxed_slice(), start: 0, end: 0 }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    pub(crate) fn consume(&mut self, bytes: usize) {
        self.start = (self.start + bytes).min(self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Reads more bytes; the caller must have consumed enough for free space. Returns 0 at the end of the stream.
    pub(crate) fn poll_fill<S: AsyncRead>(
        &mut self,
        stream: Pin<&mut S>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let mut free = ReadBuf::new(self.buffer.get_mut(self.end..).unwrap_or_default());
        ready!(stream.poll_read(cx, &mut free))?;
        let read = free.filled().len();
        self.end += read;
        Poll::Ready(Ok(read))
    }

    /// Consumes the length of the next record and returns it, once the whole record has arrived.
    fn record(&mut self, tag: Tag) -> Result<Option<usize>, Breach> {
        let Some((length, rest)) = self.bytes().split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let body = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        if !(1..=RECORD_BODY_BYTES_MAX).contains(&body) {
            return Err(Breach::Record);
        }
        match rest.get(body..body + TAG_BYTES) {
            None => Ok(None),
            Some(found) if found == tag => {
                self.consume(LENGTH_BYTES);
                Ok(Some(body))
            }
            Some(_other) => Err(Breach::Record),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    const TAG: Tag = *b"8 bytes.";

    /// More bytes than the buffers can store.
    const FLOOD_BYTES: usize = 3 * INPUT_BYTES + 5;

    fn records(stream: DuplexStream) -> Records<DuplexStream> {
        Records::new(stream, TAG, Input::new())
    }

    fn record(body: &[u8], tag: Tag) -> Vec<u8> {
        [&u32::try_from(body.len()).unwrap().to_le_bytes(), body, &tag].concat()
    }

    #[tokio::test]
    async fn gathered_writes_go_out_in_one_record_at_the_flush() {
        let (mut far, near) = duplex(1024);
        let mut gathering = records(near);
        for part in [b"header".as_slice(), b"body"] {
            gathering.write_all(part).await.unwrap();
        }
        gathering.flush().await.unwrap();
        far.write_all(&record(b"answer", TAG)).await.unwrap();
        let mut answer = [0; 6];
        for byte in answer.chunks_mut(1) {
            gathering.read_exact(byte).await.unwrap();
        }
        assert_eq!(&answer, b"answer");
        let mut arrived = vec![0; 100];
        let length = far.read(&mut arrived).await.unwrap();
        assert_eq!(&arrived[..length], record(b"headerbody", TAG));
    }

    #[tokio::test]
    async fn large_write_through_a_narrow_stream_arrives_whole() {
        let (far, near) = duplex(100);
        let flood: Vec<u8> = (0..FLOOD_BYTES).map(|at| at.to_le_bytes()[0]).collect();
        let expected = flood.clone();
        let sending = tokio::spawn(async move {
            let mut records = records(near);
            records.write_all(&flood).await.unwrap();
            records.shutdown().await.unwrap();
        });
        let mut arrived = Vec::new();
        records(far).read_to_end(&mut arrived).await.unwrap();
        sending.await.unwrap();
        assert!(arrived == expected);
    }

    #[tokio::test]
    async fn nothing_of_an_incomplete_or_foreign_record_is_delivered() {
        let whole = record(b"complete", TAG);
        let cut = [&whole[..], &record(&[7; 1000], TAG)[..1011]].concat();
        let broken = [&cut[..], &[0xff; RECORD_BODY_BYTES_MAX]].concat();
        let foreign = [&whole[..], &record(b"other", *b"another.")].concat();
        let empty = [&whole[..], &record(b"", TAG)].concat();
        let long = [&whole[..], &record(&[7; RECORD_BODY_BYTES_MAX + 1], TAG)].concat();
        for bytes in [cut, broken, foreign, empty, long] {
            let (mut far, near) = duplex(1 << 20);
            far.write_all(&bytes).await.unwrap();
            drop(far);
            let mut delivered = Vec::new();
            let fault = records(near).read_to_end(&mut delivered).await.unwrap_err();
            assert_eq!(delivered, b"complete");
            assert!(matches!(fault.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof), "{fault}");
        }
    }
}
