// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Rules that yamux does not enforce by itself. This module checks the header of each frame.
//!
//! When a peer violates the protocol, yamux 0.14 sends "go away" but keeps serving the peer. yamux allocates a megabyte
//! as soon as a header announces that much data, and processes any number of frames without data. In this module each
//! of these violations ends the link, and so does unread data beyond the limit of [`Unread`].
//!
//! ```text
//!  offset  0         1      2       4           8        12
//!          │ version │ type │ flags │ stream id │ length │ body, if the type is data     (numbers big-endian)
//! ```

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use crate::{
    breach::{BODY_BYTES_MAX, Breach},
    stream::BufferCounts,
    unread::Unread,
};

/// Length of a frame's header.
const HEADER_BYTES: usize = 12;

/// The frame types that the rules distinguish.
const DATA: u8 = 0;
const PING: u8 = 2;
const GO_AWAY: u8 = 3;

/// The flags of the first frame on a stream, and of the first frame in response.
const SYN: u16 = 1;
const ACK: u16 = 2;

/// Maximum number of frames without data that a peer may send in one burst. An honest peer sends a ping every ten
/// seconds, and one or two frames when it closes a stream.
const EMPTY_FRAMES_BURST: u64 = 8192;

/// Interval after which a peer may send one more frame without data. One millisecond allows a thousand per second.
const EMPTY_FRAME_INTERVAL: Duration = Duration::from_millis(1);

/// Number of bytes that this side sends before the peer may send one more frame without data. An honest peer's yamux
/// grants new credit only after half a window, 32 times this number.
const BYTES_PER_EMPTY_FRAME: u64 = 4096;

/// Number of frames without data that a peer may send for each stream that this side opens or answers, for example an
/// acknowledgement, an end and a reset.
const EMPTY_FRAMES_PER_STREAM: u64 = 4;

/// Checks the frames of the yamux connection over `S`. If the peer breaks a rule, the read or write fails with the
/// [`Breach`].
#[derive(Debug)]
pub(crate) struct RuleChecker<S> {
    stream: S,
    incoming: FrameSplitter,
    outgoing: FrameSplitter,
    allowance: Allowance,
    counts: Arc<BufferCounts>,
    /// True if the last write was blocked. While a write is blocked, yamux reads but does not release dropped streams.
    blocked: bool,
}

impl<S> RuleChecker<S> {
    pub(crate) fn new(stream: S, counts: Arc<BufferCounts>) -> Self {
        let (incoming, outgoing) = (FrameSplitter::default(), FrameSplitter::default());
        Self { stream, incoming, outgoing, allowance: Allowance::new(), counts, blocked: false }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for RuleChecker<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, incoming, allowance, counts, blocked, .. } = self.get_mut();
        if !*blocked {
            // While no write is blocked, yamux releases dropped streams before it reads.
            counts.unread.release_dropped();
        }
        let before = buffer.filled().len();
        ready!(Pin::new(stream).poll_read(cx, buffer))?;
        let bytes = buffer.filled().get(before..).unwrap_or_default();
        Poll::Ready(incoming.split(bytes, |header| header.check(allowance, &counts.unread)).map_err(io::Error::from))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for RuleChecker<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Self { stream, outgoing, allowance, counts, blocked, .. } = self.get_mut();
        let written = Pin::new(stream).poll_write(cx, bytes);
        *blocked = written.is_pending();
        let written = ready!(written)?;
        let bytes = bytes.get(..written).unwrap_or_default();
        allowance.earn_by_bytes(written);
        let passed = outgoing.split(bytes, |header| {
            if header.kind == GO_AWAY {
                return Err(Breach::Yamux);
            }
            if header.kind != PING && header.flags & (SYN | ACK) != 0 {
                allowance.earn(EMPTY_FRAMES_PER_STREAM);
            }
            Ok(())
        });
        counts.backlog.written(std::mem::take(&mut outgoing.data_bytes));
        Poll::Ready(passed.map(|()| written).map_err(io::Error::from))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// Finds the headers in the bytes of one direction, which arrive in pieces of any size.
#[derive(Debug, Default)]
struct FrameSplitter {
    header: [u8; HEADER_BYTES],
    header_bytes: usize,
    body_left: usize,
    /// Number of body bytes since the last reset of this counter.
    data_bytes: usize,
}

impl FrameSplitter {
    fn split(&mut self, mut bytes: &[u8], mut check: impl FnMut(Header) -> Result<(), Breach>) -> Result<(), Breach> {
        while !bytes.is_empty() {
            let (body, rest) = bytes.split_at(self.body_left.min(bytes.len()));
            self.body_left -= body.len();
            self.data_bytes += body.len();
            let (part, rest) = rest.split_at((HEADER_BYTES - self.header_bytes).min(rest.len()));
            bytes = rest;
            if let Some(free) = self.header.get_mut(self.header_bytes..self.header_bytes + part.len()) {
                free.copy_from_slice(part);
            }
            self.header_bytes += part.len();
            if self.header_bytes == HEADER_BYTES {
                let header = Header::of(self.header);
                check(header)?;
                self.header_bytes = 0;
                self.body_left = header.body_bytes();
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug)]
struct Header {
    kind: u8,
    flags: u16,
    stream: u32,
    length: u32,
}

impl Header {
    fn of([_version, kind, f0, f1, s0, s1, s2, s3, l0, l1, l2, l3]: [u8; HEADER_BYTES]) -> Self {
        let (stream, length) = (u32::from_be_bytes([s0, s1, s2, s3]), u32::from_be_bytes([l0, l1, l2, l3]));
        Self { kind, flags: u16::from_be_bytes([f0, f1]), stream, length }
    }

    fn body_bytes(self) -> usize {
        if self.kind == DATA { usize::try_from(self.length).unwrap_or(usize::MAX) } else { 0 }
    }

    fn check(self, allowance: &mut Allowance, unread: &Unread) -> Result<(), Breach> {
        match self.body_bytes() {
            0 => allowance.spend(),
            bytes if bytes > BODY_BYTES_MAX => Err(Breach::TooLong { bytes }),
            bytes => unread.arrived(self.stream, bytes),
        }
    }
}

/// The number of frames without data that the peer may still send. The number grows with time and with the bytes that
/// this side sends to the peer.
#[derive(Debug)]
struct Allowance {
    frames: u64,
    /// Bytes sent to the peer that have not earned a frame yet.
    bytes: u64,
    counted: Instant,
}

impl Allowance {
    fn new() -> Self {
        Self { frames: EMPTY_FRAMES_BURST, bytes: 0, counted: Instant::now() }
    }

    fn earn(&mut self, frames: u64) {
        self.frames = self.frames.saturating_add(frames).min(EMPTY_FRAMES_BURST);
    }

    fn earn_by_bytes(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        self.earn(self.bytes / BYTES_PER_EMPTY_FRAME);
        self.bytes %= BYTES_PER_EMPTY_FRAME;
    }

    fn spend(&mut self) -> Result<(), Breach> {
        if self.frames == 0 {
            let passed = self.counted.elapsed();
            self.counted = Instant::now();
            self.earn(u64::try_from(passed.as_nanos() / EMPTY_FRAME_INTERVAL.as_nanos()).unwrap_or(u64::MAX));
        }
        self.frames = self.frames.checked_sub(1).ok_or(Breach::Flood)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: u8, length: u32) -> [u8; HEADER_BYTES] {
        let [l0, l1, l2, l3] = length.to_be_bytes();
        [0, kind, 0, 0, 0, 0, 0, 1, l0, l1, l2, l3]
    }

    #[test]
    fn finds_headers_in_pieces_of_any_size() {
        let mut bytes = Vec::new();
        for length in [3, 0, 70_000] {
            bytes.extend(header(DATA, length));
            // A body that looks like GO_AWAY frames.
            bytes.extend(std::iter::repeat_n(GO_AWAY, length as usize));
        }
        bytes.extend(header(2, 9));
        for piece in [1, 5, 12, 13, 64_000] {
            let (mut frames, mut found) = (FrameSplitter::default(), Vec::new());
            for piece in bytes.chunks(piece) {
                let passed = frames.split(piece, |header| {
                    found.push((header.kind, header.length));
                    Ok(())
                });
                assert_eq!(passed, Ok(()));
            }
            assert_eq!(found, [(0, 3), (0, 0), (0, 70_000), (2, 9)]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn allowance_recovers_with_time_and_bytes() {
        let mut allowance = Allowance::new();
        let spent = |allowance: &mut Allowance| (0..).find(|_| allowance.spend().is_err());
        assert_eq!(spent(&mut allowance), Some(8192));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(spent(&mut allowance), Some(2000));
        allowance.earn_by_bytes(1024 * 1024);
        assert_eq!(spent(&mut allowance), Some(256));
        let unread = Unread::new(0);
        assert_eq!(Header::of(header(1, 5)).check(&mut allowance, &unread), Err(Breach::Flood));
        let long = Header::of(header(DATA, 65_537));
        assert_eq!(long.check(&mut allowance, &unread), Err(Breach::TooLong { bytes: 65_537 }));
    }
}
