// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Carries one TCP connection over a stream of the egress link. Both sides run the same code once the flow has begun.
//!
//! ```text
//!   connection ──read──▶ Data, End ──▶ stream          up to the credit that the peer has granted
//!   connection ◀─write── buffered ◀── Data, End ◀──    always read; the buffer is bounded by the credit granted
//! ```
//!
//! The stream is always read, so that credit and resets arrive even while the connection is slow. There is no timeout,
//! because a flow may be idle. To end a flow, the caller drops the future of [`carry`].

mod window;

use std::{
    collections::VecDeque,
    future::{poll_fn, ready},
    io,
    mem::MaybeUninit,
    pin::Pin,
    task::{self, Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf};
use waggle_protocol::{
    egress::{FLOW_CHUNK_BYTES_MAX, FLOW_CREDIT_BYTES, FLOW_CREDIT_BYTES_MAX, Flow},
    frame::FrameFault,
};

pub use self::window::GrantPool;
use self::window::Window;
use crate::{
    framed::{FrameReader, FrameWriter, ReceiveFault, SendFault},
    stream::Stream,
};

/// Maximum length of one read from a connection in bytes. Few large reads cost less than many small ones. If the peer
/// grants credit but does not read the stream, the flow buffers up to this many bytes.
const READ_BYTES_MAX: usize = 32 * 1024;

/// The outcome of a flow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ending {
    /// Both directions ended cleanly.
    Ended,
    /// The flow was reset or cut off. The caller must reset the connection too, because a plain close looks like a
    /// clean end.
    Reset,
}

/// A rule of a flow that the peer broke. The stream is unusable afterwards.
#[derive(Debug, thiserror::Error)]
pub enum FlowBreach {
    /// A frame without a valid flow message.
    #[error("received an invalid frame on a flow")]
    Frame { source: FrameFault },
    /// Data beyond the credit, empty data, or data after `End`.
    #[error("invalid data of {bytes} bytes on a flow with {granted} bytes of credit")]
    Data {
        bytes: usize,
        /// The unused credit of the peer.
        granted: u32,
    },
    /// A grant of zero bytes, or one that raises the credit above the limit.
    #[error(
        "invalid grant of {bytes} bytes on top of {left}; must be at least 1, in total at most {FLOW_CREDIT_BYTES_MAX}"
    )]
    Credit {
        bytes: u32,
        /// The unused credit from earlier grants.
        left: u32,
    },
}

/// Carries `connection` over the stream of a flow that has begun, until the flow ends.
///
/// # Errors
/// [`FlowBreach`]; the stream is unusable afterwards.
pub async fn carry<T: AsyncRead + AsyncWrite + Unpin>(
    reader: &mut FrameReader<ReadHalf<Stream>>,
    writer: &mut FrameWriter<WriteHalf<Stream>>,
    connection: &mut T,
    pool: &GrantPool,
) -> Result<Ending, FlowBreach> {
    let (mut from, mut to) = tokio::io::split(connection);
    let mut flow = FlowState::new(pool);
    loop {
        // Grant credit only when the message can be sent at once, so that grants for a peer that does not read do not
        // pile up.
        if writer.is_idle() {
            flow.queue_grant(writer).map_err(|source| FlowBreach::Frame { source })?;
        }
        let idle = writer.is_idle();
        let ending = flow.ending().filter(|_| idle);
        tokio::select! {
            received = reader.receive::<Flow<'_>>(), if flow.can_receive() => {
                let open = flow.on_received(received)? && receive_available(reader, &mut flow).await?;
                if !open {
                    return Ok(Ending::Reset);
                }
                // Most messages are grants, and after a grant a flow is often idle. Hundreds of idle flows must not
                // keep buffers.
                writer.release();
            }
            sent = flush_or_finish(writer, ending), if !idle || ending.is_some() => match ending {
                // A failure means that the link has ended, so the peer could not receive the end of the stream anyway.
                Some(ending) => return Ok(ending),
                None if sent.is_err() => return Ok(Ending::Reset),
                None => {}
            },
            read = read_piece(&mut from, flow.credit), if idle && flow.can_read() => {
                let queued = match read {
                    Ok(bytes) if bytes.is_empty() && flow.was_reset => flow.queue_reset(writer),
                    Ok(bytes) if bytes.is_empty() => flow.queue_end(writer),
                    Ok(bytes) => flow.queue_data(writer, &bytes),
                    Err(_reset) => flow.queue_reset(writer),
                };
                queued.map_err(|source| FlowBreach::Frame { source })?;
            }
            written = write_buffered(&mut to, &flow.buffered), if flow.can_write() => {
                flow.on_written(written, writer).map_err(|source| FlowBreach::Frame { source })?;
            }
        }
        if flow.peer_reset {
            return Ok(Ending::Reset);
        }
    }
}

/// Writes pending messages, and ends this direction of the stream if the flow has ended.
async fn flush_or_finish(writer: &mut FrameWriter<WriteHalf<Stream>>, ending: Option<Ending>) -> Result<(), SendFault> {
    if ending.is_some() { writer.finish().await } else { writer.flush().await }
}

/// Receives the messages that have already arrived, without waiting, so that their data is written to the connection in
/// one piece. Returns false if the flow was cut off.
async fn receive_available(
    reader: &mut FrameReader<ReadHalf<Stream>>,
    flow: &mut FlowState<'_>,
) -> Result<bool, FlowBreach> {
    while flow.can_receive() && !flow.peer_reset {
        tokio::select! {
            biased;
            received = reader.receive::<Flow<'_>>() => if !flow.on_received(received)? {
                return Ok(false);
            },
            () = ready(()) => break,
        }
    }
    Ok(true)
}

/// Reads the next bytes of a connection. Returns an empty vector at the end of the data.
async fn read_piece<R: AsyncRead + Unpin>(from: &mut R, credit: u32) -> io::Result<Vec<u8>> {
    poll_fn(|cx| poll_piece(Pin::new(from), credit, cx)).await
}

/// Reads into a buffer on the stack, so that a waiting flow needs no buffer on the heap.
fn poll_piece<R: AsyncRead>(from: Pin<&mut R>, credit: u32, cx: &mut Context<'_>) -> Poll<io::Result<Vec<u8>>> {
    let mut buffer = [MaybeUninit::uninit(); READ_BYTES_MAX];
    let buffer = buffer.get_mut(..READ_BYTES_MAX.min(credit as usize)).unwrap_or_default();
    let mut piece = ReadBuf::uninit(buffer);
    task::ready!(from.poll_read(cx, &mut piece))?;
    Poll::Ready(Ok(piece.filled().to_vec()))
}

/// Writes some buffered bytes. Shuts the connection down for writing if no bytes are buffered.
async fn write_buffered<W: AsyncWrite + Unpin>(to: &mut W, buffered: &VecDeque<u8>) -> io::Result<usize> {
    match buffered.as_slices() {
        ([], _) => to.shutdown().await.map(|()| 0),
        (front, _) => match to.write(front).await? {
            0 => Err(io::ErrorKind::WriteZero.into()),
            written => Ok(written),
        },
    }
}

#[derive(Debug)]
struct FlowState<'a> {
    /// Bytes that may still be sent to the peer.
    credit: u32,
    window: Window<'a>,
    /// Data from the peer that has not been written to the connection.
    buffered: VecDeque<u8>,
    /// The connection's data has ended, and `End` was queued.
    ended: bool,
    /// `Reset` was queued.
    reset: bool,
    peer_ended: bool,
    peer_reset: bool,
    /// The peer's direction of the stream has ended.
    peer_closed: bool,
    /// The connection accepts no more data, because it was shut down for writing or has failed.
    shut: bool,
    /// A write reported that the other side of the connection has reset it.
    was_reset: bool,
}

impl<'a> FlowState<'a> {
    fn new(pool: &'a GrantPool) -> Self {
        Self {
            credit: FLOW_CREDIT_BYTES,
            window: Window::new(pool),
            buffered: VecDeque::new(),
            ended: false,
            reset: false,
            peer_ended: false,
            peer_reset: false,
            peer_closed: false,
            shut: false,
            was_reset: false,
        }
    }

    fn ending(&self) -> Option<Ending> {
        if self.reset {
            return Some(Ending::Reset);
        }
        (self.both_ended() && self.shut).then_some(Ending::Ended)
    }

    /// Both sides have sent `End`.
    fn both_ended(&self) -> bool {
        self.ended && self.peer_ended
    }

    /// True until the stream ends, even after the peer's `End`, because unread messages would use memory.
    fn can_receive(&self) -> bool {
        !self.peer_closed
    }

    fn can_read(&self) -> bool {
        !self.ended && !self.reset && self.credit > 0
    }

    fn can_write(&self) -> bool {
        !self.shut && !self.reset && (self.peer_ended || !self.buffered.is_empty())
    }

    /// Processes a received message, or the end of the stream. Returns false if the stream ended before both sides had
    /// sent `End`.
    fn on_received(&mut self, received: Result<Option<Flow<'_>>, ReceiveFault>) -> Result<bool, FlowBreach> {
        match received {
            Ok(Some(message)) => self.on_message(message).map(|()| true),
            Err(ReceiveFault::Frame { source }) => Err(FlowBreach::Frame { source }),
            Ok(None) | Err(ReceiveFault::Io { .. }) => {
                self.peer_closed = true;
                Ok(self.both_ended())
            }
        }
    }

    fn on_message(&mut self, message: Flow<'_>) -> Result<(), FlowBreach> {
        match message {
            Flow::Data(bytes) => {
                let granted = if self.peer_ended { 0 } else { self.window.open() };
                let fits = u32::try_from(bytes.len()).ok().filter(|bytes| (1..=granted).contains(bytes));
                let fitting = fits.ok_or(FlowBreach::Data { bytes: bytes.len(), granted })?;
                self.window.received(fitting);
                // A failed connection accepts no more data. Reading from the connection reports the error.
                if !self.shut {
                    self.buffered.reserve(bytes.len());
                    self.buffered.extend(bytes);
                }
            }
            Flow::Credit { bytes } => {
                let left = self.credit;
                let all = left.checked_add(bytes).filter(|all| bytes > 0 && *all <= FLOW_CREDIT_BYTES_MAX);
                self.credit = all.ok_or(FlowBreach::Credit { bytes, left })?;
            }
            Flow::End => self.peer_ended = true,
            // After an `End` in each direction, nothing is left to reset.
            Flow::Reset => self.peer_reset = !self.both_ended(),
        }
        Ok(())
    }

    fn queue_data(&mut self, writer: &mut FrameWriter<WriteHalf<Stream>>, bytes: &[u8]) -> Result<(), FrameFault> {
        self.credit = self.credit.saturating_sub(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        bytes.chunks(FLOW_CHUNK_BYTES_MAX).try_for_each(|chunk| writer.queue(&Flow::Data(chunk)))
    }

    fn queue_grant(&mut self, writer: &mut FrameWriter<WriteHalf<Stream>>) -> Result<(), FrameFault> {
        match self.window.grant().filter(|_| !self.peer_ended && !self.reset) {
            Some(bytes) => writer.queue(&Flow::Credit { bytes }),
            None => Ok(()),
        }
    }

    fn queue_end(&mut self, writer: &mut FrameWriter<WriteHalf<Stream>>) -> Result<(), FrameFault> {
        self.ended = true;
        writer.queue(&Flow::End)
    }

    fn queue_reset(&mut self, writer: &mut FrameWriter<WriteHalf<Stream>>) -> Result<(), FrameFault> {
        self.reset = true;
        self.shut = true;
        self.buffered = VecDeque::new();
        writer.queue(&Flow::Reset)
    }

    fn on_written(
        &mut self,
        written: io::Result<usize>,
        writer: &mut FrameWriter<WriteHalf<Stream>>,
    ) -> Result<(), FrameFault> {
        match written {
            Ok(0) => self.shut = true,
            Ok(bytes) => {
                self.buffered.drain(..bytes);
                if self.buffered.is_empty() {
                    self.buffered = VecDeque::new();
                }
                self.window.consumed(bytes);
            }
            // Data that arrived before the connection failed must still be read. Linux reports a reset only once, so
            // reading does not report it again: it reports an end that the other side never sent.
            Err(broken) if self.can_read() => {
                self.was_reset = broken.kind() == io::ErrorKind::ConnectionReset;
                self.shut = true;
                self.buffered = VecDeque::new();
            }
            Err(_broken) => self.queue_reset(writer)?,
        }
        Ok(())
    }
}
