// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What a peer has to keep to, beyond what yamux makes sure of by itself. Every frame's header passes through here.
//!
//! yamux 0.14 tells a peer that breaks its rules to go away, and then serves it on; it makes room for a megabyte on the
//! word of a header; and frames that carry nothing cost it work without end. Here each of the three ends the link, and
//! so does what this side would have to keep beyond all that an honest peer sends: see [`Unread`].
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
use waggle_protocol::CHUNK_BYTES_MAX;

use crate::{stream::Shared, unread::Unread};

/// Bytes of a frame's header.
const HEADER_BYTES: usize = 12;

/// The types of frame that matter here.
const DATA: u8 = 0;
const PING: u8 = 2;
const GO_AWAY: u8 = 3;

/// The flags of a frame that opens a stream, and of the first one that comes back on it.
const SYN: u16 = 1;
const ACK: u16 = 2;

/// Longest body of a frame, in bytes. Both sides send at most a chunk at a time.
const BODY_BYTES_MAX: usize = CHUNK_BYTES_MAX;

/// Frames without data that a peer may send at once, out of nothing. An honest one sends a ping every ten seconds, and
/// one or two when it closes a stream.
const IDLE_FRAMES_BURST: u64 = 8192;

/// Frames without data that a peer may send for ever, one each so long: a thousand a second.
const IDLE_FRAME_INTERVAL: Duration = Duration::from_millis(1);

/// For so many bytes that a peer is sent it may send one more frame without data. yamux gives new credit for half a
/// window, which is 32 times this.
const IDLE_FRAME_PER_BYTES: u64 = 4096;

/// For each stream that is opened to a peer, and for each of the peer's that is answered, it may send so many more: a
/// receipt, an end, a reset.
const IDLE_FRAMES_PER_STREAM: u64 = 4;

/// The other side broke a rule of the link.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Breach {
    /// yamux wants to tell the peer to go away, and never does that without a cause.
    #[error("the other side broke the rules of yamux")]
    Yamux,
    /// A body that no honest peer sends.
    #[error("the other side announced {bytes} bytes in a piece; {BODY_BYTES_MAX} are the most")]
    TooLong {
        /// What the header says.
        bytes: usize,
    },
    /// Pings, resets, credit and empty data beyond all need.
    #[error("the other side floods the link with frames that carry nothing")]
    Flood,
    /// More data, or in smaller pieces, than is read and than this side keeps.
    #[error("the other side made this one keep {bytes} bytes for data that was not read")]
    Unread {
        /// What it costs to keep.
        bytes: u64,
    },
}

impl Breach {
    /// The breach that a stream ended with, if it was one.
    pub(crate) fn of(fault: &io::Error) -> Option<Self> {
        fault.get_ref().and_then(|inner| inner.downcast_ref::<Self>()).copied()
    }
}

impl From<Breach> for io::Error {
    fn from(breach: Breach) -> Self {
        Self::new(io::ErrorKind::InvalidData, breach)
    }
}

/// Wraps the stream under a yamux connection; a read or a write fails with the [`Breach`].
#[derive(Debug)]
pub(crate) struct Rules<S> {
    stream: S,
    incoming: Frames,
    outgoing: Frames,
    allowance: Allowance,
    /// Hears of the data that goes out and comes in.
    shared: Arc<Shared>,
    /// The last write has to wait. yamux then keeps streams that were dropped, and reads on.
    blocked: bool,
}

impl<S> Rules<S> {
    pub(crate) fn new(stream: S, shared: Arc<Shared>) -> Self {
        let (incoming, outgoing) = (Frames::default(), Frames::default());
        Self { stream, incoming, outgoing, allowance: Allowance::new(), shared, blocked: false }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rules<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, incoming, allowance, shared, blocked, .. } = self.get_mut();
        if !*blocked {
            // Before it reads yamux has done all that its streams had for it, where it could write.
            shared.unread.forget_gone();
        }
        let before = buffer.filled().len();
        ready!(Pin::new(stream).poll_read(cx, buffer))?;
        let bytes = buffer.filled().get(before..).unwrap_or_default();
        Poll::Ready(incoming.pass(bytes, |header| header.judge(allowance, &shared.unread)).map_err(io::Error::from))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rules<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Self { stream, outgoing, allowance, shared, blocked, .. } = self.get_mut();
        let written = Pin::new(stream).poll_write(cx, bytes);
        *blocked = written.is_pending();
        let written = ready!(written)?;
        let bytes = bytes.get(..written).unwrap_or_default();
        allowance.earn_by_bytes(written);
        let passed = outgoing.pass(bytes, |header| {
            if header.kind == GO_AWAY {
                return Err(Breach::Yamux);
            }
            if header.kind != PING && header.flags & (SYN | ACK) != 0 {
                allowance.earn(IDLE_FRAMES_PER_STREAM);
            }
            Ok(())
        });
        shared.backlog.written(std::mem::take(&mut outgoing.data_bytes));
        Poll::Ready(passed.map(|()| written).map_err(io::Error::from))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// Finds the headers in one direction's bytes, however they are cut.
#[derive(Debug, Default)]
struct Frames {
    header: [u8; HEADER_BYTES],
    header_bytes: usize,
    body_left: usize,
    /// Bytes of bodies that have passed.
    data_bytes: usize,
}

impl Frames {
    fn pass(&mut self, mut bytes: &[u8], mut judge: impl FnMut(Header) -> Result<(), Breach>) -> Result<(), Breach> {
        while !bytes.is_empty() {
            let (body, rest) = bytes.split_at(self.body_left.min(bytes.len()));
            self.body_left -= body.len();
            self.data_bytes += body.len();
            let (part, rest) = rest.split_at((HEADER_BYTES - self.header_bytes).min(rest.len()));
            bytes = rest;
            if let Some(place) = self.header.get_mut(self.header_bytes..self.header_bytes + part.len()) {
                place.copy_from_slice(part);
            }
            self.header_bytes += part.len();
            if self.header_bytes == HEADER_BYTES {
                let header = Header::of(self.header);
                judge(header)?;
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

    fn judge(self, allowance: &mut Allowance, unread: &Unread) -> Result<(), Breach> {
        match self.body_bytes() {
            0 => allowance.spend(),
            bytes if bytes > BODY_BYTES_MAX => Err(Breach::TooLong { bytes }),
            bytes => unread.arrived(self.stream, bytes),
        }
    }
}

/// Frames without data that the peer may still send: some at once, more with time and with what it is sent.
#[derive(Debug)]
struct Allowance {
    frames: u64,
    /// Bytes sent to the peer that have not earned it a frame yet.
    bytes: u64,
    counted: Instant,
}

impl Allowance {
    fn new() -> Self {
        Self { frames: IDLE_FRAMES_BURST, bytes: 0, counted: Instant::now() }
    }

    fn earn(&mut self, frames: u64) {
        self.frames = self.frames.saturating_add(frames).min(IDLE_FRAMES_BURST);
    }

    fn earn_by_bytes(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        self.earn(self.bytes / IDLE_FRAME_PER_BYTES);
        self.bytes %= IDLE_FRAME_PER_BYTES;
    }

    fn spend(&mut self) -> Result<(), Breach> {
        if self.frames == 0 {
            let passed = self.counted.elapsed();
            self.counted = Instant::now();
            self.earn(u64::try_from(passed.as_nanos() / IDLE_FRAME_INTERVAL.as_nanos()).unwrap_or(u64::MAX));
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
    fn headers_are_found_however_the_bytes_are_cut() {
        let mut bytes = Vec::new();
        for length in [3, 0, 70_000] {
            bytes.extend(header(DATA, length));
            // A body full of what looks like orders to go away.
            bytes.extend(std::iter::repeat_n(GO_AWAY, length as usize));
        }
        bytes.extend(header(2, 9));
        for piece in [1, 5, 12, 13, 64_000] {
            let (mut frames, mut found) = (Frames::default(), Vec::new());
            for piece in bytes.chunks(piece) {
                let passed = frames.pass(piece, |header| {
                    found.push((header.kind, header.length));
                    Ok(())
                });
                assert_eq!(passed, Ok(()));
            }
            assert_eq!(found, [(0, 3), (0, 0), (0, 70_000), (2, 9)]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn frames_without_data_run_out_and_come_back_with_time_and_bytes() {
        let mut allowance = Allowance::new();
        let spent = |allowance: &mut Allowance| (0..).find(|_| allowance.spend().is_err());
        assert_eq!(spent(&mut allowance), Some(8192));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(spent(&mut allowance), Some(2000));
        allowance.earn_by_bytes(1024 * 1024);
        assert_eq!(spent(&mut allowance), Some(256));
        let unread = Unread::new(0);
        assert_eq!(Header::of(header(1, 5)).judge(&mut allowance, &unread), Err(Breach::Flood));
        let long = Header::of(header(DATA, 65_537));
        assert_eq!(long.judge(&mut allowance, &unread), Err(Breach::TooLong { bytes: 65_537 }));
    }
}
