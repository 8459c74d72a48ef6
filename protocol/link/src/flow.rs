// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Carries one TCP connection over a stream of the egress link. Both ends run the same code once the flow has begun.
//!
//! ```text
//!   connection ──read──▶ Data, End ──▶ stream          up to the credit that the peer has granted
//!   connection ◀─write── buffered ◀── Data, End ◀──    always read; the buffer is bounded by the credit granted
//! ```
//!
//! The stream is always read, so that credit and resets arrive however slow the connection is. There is no timeout,
//! because a flow may idle. The caller ends a flow by dropping the future.

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

/// Largest read from a connection, in bytes. Few large pieces cost less than many small ones. A flow whose peer grants
/// credit but does not read buffers this much.
const READ_BYTES_MAX: usize = 32 * 1024;

/// The outcome of a flow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ending {
    /// Both directions ended in order.
    Ended,
    /// Either end reset it. The caller must reset the connection too, because closing it looks like an orderly end.
    Reset,
}

/// A rule of a flow that the peer broke. The stream is unusable afterwards.
#[derive(Debug, thiserror::Error)]
pub enum FlowBreach {
    /// A frame without a valid flow message.
    #[error("received an invalid frame on a flow")]
    Frame {
        /// The cause.
        source: FrameFault,
    },
    /// More data than was granted, no data, or data after the end.
    #[error("received {bytes} bytes on a flow with {granted} bytes of credit")]
    Data {
        /// The length of the data.
        bytes: usize,
        /// The credit that the peer had left.
        granted: u32,
    },
    /// A grant of no credit, or of more than the limit.
    #[error("received invalid credit: {bytes} bytes on top of {left}, of at most {FLOW_CREDIT_BYTES_MAX}")]
    Credit {
        /// The grant.
        bytes: u32,
        /// The credit left from earlier grants.
        left: u32,
    },
}

/// Carries `connection` over a stream on which the flow has begun, until both directions have ended.
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
        // Credit is granted only when it can be sent at once, so that grants do not pile up for a peer that reads none.
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
                // Most messages are grants, after which hundreds of flows may idle: they keep no buffer.
                writer.release();
            }
            sent = flush_or_finish(writer, ending), if !idle || ending.is_some() => match ending {
                // If this failed, the link has ended, so no peer is left to receive the end.
                Some(ending) => return Ok(ending),
                None if sent.is_err() => return Ok(Ending::Reset),
                None => {}
            },
            read = read_piece(&mut from, flow.credit), if idle && flow.can_read() => {
                let queued = match read {
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
/// one piece. Returns false if the flow ends.
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

/// Reads the next bytes of a connection; empty at its end.
async fn read_piece<R: AsyncRead + Unpin>(from: &mut R, credit: u32) -> io::Result<Vec<u8>> {
    poll_fn(|cx| poll_piece(Pin::new(from), credit, cx)).await
}

/// Reads into a buffer on the stack, so that a waiting flow holds no memory.
fn poll_piece<R: AsyncRead>(from: Pin<&mut R>, credit: u32, cx: &mut Context<'_>) -> Poll<io::Result<Vec<u8>>> {
    let mut buffer = [MaybeUninit::uninit(); READ_BYTES_MAX];
    let buffer = buffer.get_mut(..READ_BYTES_MAX.min(credit as usize)).unwrap_or_default();
    let mut piece = ReadBuf::uninit(buffer);
    task::ready!(from.poll_read(cx, &mut piece))?;
    Poll::Ready(Ok(piece.filled().to_vec()))
}

/// Writes some buffered bytes, or shuts the connection down for writing if there are none.
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
    /// The connection has ended, and `End` was queued.
    ended: bool,
    /// `Reset` was queued.
    reset: bool,
    peer_ended: bool,
    peer_reset: bool,
    /// The peer's direction of the stream has ended.
    peer_closed: bool,
    /// The connection takes no more data: it was shut down for writing, or it broke.
    shut: bool,
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

    /// True until the end of the stream, even after `End`: unread data takes memory, in pieces that the peer chooses.
    fn can_receive(&self) -> bool {
        !self.peer_closed
    }

    fn can_read(&self) -> bool {
        !self.ended && !self.reset && self.credit > 0
    }

    fn can_write(&self) -> bool {
        !self.shut && !self.reset && (self.peer_ended || !self.buffered.is_empty())
    }

    /// Processes a received message, or the end of the stream. Returns false if the flow ends with it.
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
                // A broken connection takes no more data. Its reader reports the cause.
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
            // After both ends have been sent, nothing is left to reset.
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
            // Data that the connection received before it broke must still be read. Its reader meets the error as well.
            Err(_broken) if self.can_read() => {
                self.shut = true;
                self.buffered = VecDeque::new();
            }
            Err(_broken) => self.queue_reset(writer)?,
        }
        Ok(())
    }
}
