// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Carries one TCP connection over a stream of the egress link. Both ends do the same once the flow has begun.
//!
//! ```text
//!   connection ──read──▶ Data, End ──▶ stream      as much as the peer has granted
//!   connection ◀─write── held ◀── Data, End ◀──    always read; held is bounded by what was granted
//! ```
//!
//! The stream is read all the time, so that grants and resets arrive however slow the connection is. Nothing here has a
//! deadline: a flow may idle. Who carries it ends it by dropping the future.

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
use crate::{FrameReader, FrameWriter, ReceiveFault, SendFault, Stream};

/// Read from a connection at a time, in bytes: few large pieces cost less than many small ones on their whole way. A
/// flow whose peer grants and does not read holds as much.
const READ_BYTES_MAX: usize = 32 * 1024;

/// How a flow came to its end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ending {
    /// Both directions ended in order.
    Ended,
    /// It was reset by either end. The connection has to be reset too: a plain close would look like an orderly end.
    Reset,
}

/// The peer broke the rules of a flow.
#[derive(Debug, thiserror::Error)]
pub enum FlowBreach {
    /// What came is no message of a flow.
    #[error("received a bad frame on a flow")]
    Frame {
        /// What was wrong.
        source: FrameFault,
    },
    /// More data than was granted, none at all, or some behind the end.
    #[error("received {bytes} bytes on a flow that had {granted} granted")]
    Data {
        /// How many came.
        bytes: usize,
        /// How many might have come.
        granted: u32,
    },
    /// A grant of nothing, or of more than a side may have.
    #[error("was granted {bytes} bytes on a flow, on top of {left}")]
    Credit {
        /// The grant.
        bytes: u32,
        /// What was left of earlier ones.
        left: u32,
    },
}

/// Carries `connection` over a stream on which the flow has begun, until both directions have ended.
///
/// # Errors
/// [`FlowBreach`]; the stream is of no use after one.
pub async fn carry<T: AsyncRead + AsyncWrite + Unpin>(
    reader: &mut FrameReader<ReadHalf<Stream>>,
    writer: &mut FrameWriter<WriteHalf<Stream>>,
    connection: &mut T,
    pool: &GrantPool,
) -> Result<Ending, FlowBreach> {
    let (mut from, mut to) = tokio::io::split(connection);
    let mut flow = State::new(pool);
    loop {
        // Only what can be told at once is granted: a peer that takes nothing would make grants pile up.
        if writer.is_idle() {
            flow.grant(writer).map_err(|source| FlowBreach::Frame { source })?;
        }
        let idle = writer.is_idle();
        let ending = flow.ending().filter(|_| idle);
        tokio::select! {
            heard = reader.receive::<Flow<'_>>(), if flow.hears() => {
                let lives = flow.hear_or_end(heard)? && hear_the_rest(reader, &mut flow).await?;
                if !lives {
                    return Ok(Ending::Reset);
                }
                // A grant for what was sent, mostly; hundreds of flows may idle after theirs.
                writer.release();
            }
            sent = tell(writer, ending), if !idle || ending.is_some() => match ending {
                // If the link is gone, so is whoever would want to hear of it.
                Some(ending) => return Ok(ending),
                None if sent.is_err() => return Ok(Ending::Reset),
                None => {}
            },
            read = read_piece(&mut from, flow.credit), if idle && flow.reads() => {
                let told = match read {
                    Ok(bytes) if bytes.is_empty() => flow.end(writer),
                    Ok(bytes) => flow.send(writer, &bytes),
                    Err(_reset) => flow.break_off(writer),
                };
                told.map_err(|source| FlowBreach::Frame { source })?;
            }
            pushed = push(&mut to, &flow.held), if flow.pushes() => {
                flow.pushed(pushed, writer).map_err(|source| FlowBreach::Frame { source })?;
            }
        }
        if flow.peer_reset {
            return Ok(Ending::Reset);
        }
    }
}

/// Writes what is pending, and ends this direction of the stream once the flow has ended.
async fn tell(writer: &mut FrameWriter<WriteHalf<Stream>>, ending: Option<Ending>) -> Result<(), SendFault> {
    if ending.is_some() { writer.finish().await } else { writer.flush().await }
}

/// Takes what has come already, and waits for nothing: what it brings then goes to the connection in one piece. False
/// where the flow ends.
async fn hear_the_rest(reader: &mut FrameReader<ReadHalf<Stream>>, flow: &mut State<'_>) -> Result<bool, FlowBreach> {
    while flow.hears() && !flow.peer_reset {
        tokio::select! {
            biased;
            heard = reader.receive::<Flow<'_>>() => if !flow.hear_or_end(heard)? {
                return Ok(false);
            },
            () = ready(()) => break,
        }
    }
    Ok(true)
}

/// The next bytes of a connection, none at its end.
async fn read_piece<R: AsyncRead + Unpin>(from: &mut R, credit: u32) -> io::Result<Vec<u8>> {
    poll_fn(|cx| poll_piece(Pin::new(from), credit, cx)).await
}

/// Reads into the stack, so that a flow that waits holds no buffer.
fn poll_piece<R: AsyncRead>(from: Pin<&mut R>, credit: u32, cx: &mut Context<'_>) -> Poll<io::Result<Vec<u8>>> {
    let mut room = [MaybeUninit::uninit(); READ_BYTES_MAX];
    let room = room.get_mut(..READ_BYTES_MAX.min(credit as usize)).unwrap_or_default();
    let mut piece = ReadBuf::uninit(room);
    task::ready!(from.poll_read(cx, &mut piece))?;
    Poll::Ready(Ok(piece.filled().to_vec()))
}

/// Writes some of what is held, or ends the connection's direction if nothing is.
async fn push<W: AsyncWrite + Unpin>(to: &mut W, held: &VecDeque<u8>) -> io::Result<usize> {
    match held.as_slices() {
        ([], _) => to.shutdown().await.map(|()| 0),
        (front, _) => match to.write(front).await? {
            0 => Err(io::ErrorKind::WriteZero.into()),
            written => Ok(written),
        },
    }
}

/// Where a flow stands.
#[derive(Debug)]
struct State<'a> {
    /// Bytes that may still be sent to the peer.
    credit: u32,
    window: Window<'a>,
    /// From the peer, not yet written to the connection.
    held: VecDeque<u8>,
    /// The connection has ended, and the peer was told.
    ended: bool,
    /// The peer was told of a reset.
    reset: bool,
    peer_ended: bool,
    peer_reset: bool,
    /// The peer's direction of the stream is over.
    peer_gone: bool,
    /// The connection takes no more: it was told of the end, or it broke.
    shut: bool,
}

impl<'a> State<'a> {
    fn new(pool: &'a GrantPool) -> Self {
        Self {
            credit: FLOW_CREDIT_BYTES,
            window: Window::new(pool),
            held: VecDeque::new(),
            ended: false,
            reset: false,
            peer_ended: false,
            peer_reset: false,
            peer_gone: false,
            shut: false,
        }
    }

    fn ending(&self) -> Option<Ending> {
        if self.reset {
            return Some(Ending::Reset);
        }
        (self.both_ended() && self.shut).then_some(Ending::Ended)
    }

    /// Both sides have told their end.
    fn both_ended(&self) -> bool {
        self.ended && self.peer_ended
    }

    /// To the end of the stream, whatever was told: what is not read is kept, in pieces of the peer's choice.
    fn hears(&self) -> bool {
        !self.peer_gone
    }

    fn reads(&self) -> bool {
        !self.ended && !self.reset && self.credit > 0
    }

    fn pushes(&self) -> bool {
        !self.shut && !self.reset && (self.peer_ended || !self.held.is_empty())
    }

    /// False at the end of the stream, where the flow ends with it.
    fn hear_or_end(&mut self, heard: Result<Option<Flow<'_>>, ReceiveFault>) -> Result<bool, FlowBreach> {
        match heard {
            Ok(Some(message)) => self.hear(message).map(|()| true),
            Err(ReceiveFault::Frame { source }) => Err(FlowBreach::Frame { source }),
            Ok(None) | Err(ReceiveFault::Io { .. }) => {
                self.peer_gone = true;
                Ok(self.both_ended())
            }
        }
    }

    fn hear(&mut self, message: Flow<'_>) -> Result<(), FlowBreach> {
        match message {
            Flow::Data(bytes) => {
                let granted = if self.peer_ended { 0 } else { self.window.open() };
                let fits = u32::try_from(bytes.len()).ok().filter(|bytes| (1..=granted).contains(bytes));
                let fitting = fits.ok_or(FlowBreach::Data { bytes: bytes.len(), granted })?;
                self.window.received(fitting);
                // A connection that broke takes no more. Its reader finds out why.
                if !self.shut {
                    self.held.reserve(bytes.len());
                    self.held.extend(bytes);
                }
            }
            Flow::Credit { bytes } => {
                let left = self.credit;
                let all = left.checked_add(bytes).filter(|all| bytes > 0 && *all <= FLOW_CREDIT_BYTES_MAX);
                self.credit = all.ok_or(FlowBreach::Credit { bytes, left })?;
            }
            Flow::End => self.peer_ended = true,
            // With both ends told there is nothing left to reset.
            Flow::Reset => self.peer_reset = !self.both_ended(),
        }
        Ok(())
    }

    fn send(&mut self, writer: &mut FrameWriter<WriteHalf<Stream>>, bytes: &[u8]) -> Result<(), FrameFault> {
        self.credit = self.credit.saturating_sub(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        bytes.chunks(FLOW_CHUNK_BYTES_MAX).try_for_each(|chunk| writer.queue(&Flow::Data(chunk)))
    }

    fn grant(&mut self, writer: &mut FrameWriter<WriteHalf<Stream>>) -> Result<(), FrameFault> {
        match self.window.grant().filter(|_| !self.peer_ended && !self.reset) {
            Some(bytes) => writer.queue(&Flow::Credit { bytes }),
            None => Ok(()),
        }
    }

    fn end(&mut self, writer: &mut FrameWriter<WriteHalf<Stream>>) -> Result<(), FrameFault> {
        self.ended = true;
        writer.queue(&Flow::End)
    }

    fn break_off(&mut self, writer: &mut FrameWriter<WriteHalf<Stream>>) -> Result<(), FrameFault> {
        self.reset = true;
        self.shut = true;
        self.held = VecDeque::new();
        writer.queue(&Flow::Reset)
    }

    fn pushed(
        &mut self,
        pushed: io::Result<usize>,
        writer: &mut FrameWriter<WriteHalf<Stream>>,
    ) -> Result<(), FrameFault> {
        match pushed {
            Ok(0) => self.shut = true,
            Ok(bytes) => {
                self.held.drain(..bytes);
                if self.held.is_empty() {
                    self.held = VecDeque::new();
                }
                self.window.consumed(bytes);
            }
            // What the connection has received before it broke is still to be read, and its reader meets the fault too.
            Err(_broken) if self.reads() => {
                self.shut = true;
                self.held = VecDeque::new();
            }
            Err(_broken) => self.break_off(writer)?,
        }
        Ok(())
    }
}
