// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Carries one TCP connection over a stream of the egress link. Both sides run the same code once the flow has begun.
//!
//! ```text
//!   connection ──read──▶ stream       up to the credit that the peer has granted
//!   connection ◀─write── stream       the data counts as buffered until it is written to the connection
//! ```
//!
//! There is no timeout, because a flow may be idle. To end a flow, the caller drops the future of [`carry`].

use std::{
    collections::VecDeque,
    future::poll_fn,
    io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use crate::stream::Stream;

/// Maximum length of one read from a connection in bytes. Few large reads cost less than many small ones.
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

/// Carries `connection` over the stream of a flow that has begun, until the flow ends. The caller must then drop the
/// stream; the drop tells the peer of a reset.
pub async fn carry<T: AsyncRead + AsyncWrite + Unpin>(stream: &Stream, connection: &mut T) -> Ending {
    let (mut from, mut to) = tokio::io::split(connection);
    let mut flow = FlowState::default();
    loop {
        tokio::select! {
            () = stream.until_reset() => return Ending::Reset,
            taken = stream.take(), if !flow.peer_ended && flow.taken.is_empty() => match taken {
                Ok(taken) if taken.is_empty() => flow.peer_ended = true,
                // A failed connection accepts no more data. The data still counts as buffered, so the peer stops.
                Ok(taken) if !flow.shut => flow.taken = taken,
                Ok(_) => {}
                Err(_reset) => return Ending::Reset,
            },
            written = write_taken(&mut to, &flow.taken), if flow.can_write() => match written {
                Ok(0) => flow.shut = true,
                Ok(bytes) => {
                    flow.taken.drain(..bytes);
                    if flow.taken.is_empty() {
                        // Hundreds of idle flows must not keep buffers.
                        flow.taken = VecDeque::new();
                    }
                    stream.consumed(bytes);
                }
                // Data that arrived before the connection failed must still be read. Linux reports a reset only once,
                // so reading does not report it again: it reports an end that the other side never sent.
                Err(broken) if !flow.ended => {
                    flow.was_reset = broken.kind() == io::ErrorKind::ConnectionReset;
                    (flow.shut, flow.taken) = (true, VecDeque::new());
                }
                Err(_broken) => return Ending::Reset,
            },
            read = poll_fn(|cx| poll_move(Pin::new(&mut from), stream, cx)), if !flow.ended => match read {
                Ok(0) if !flow.was_reset => {
                    stream.end();
                    flow.ended = true;
                }
                Ok(1..) => {}
                Ok(0) | Err(_) => return Ending::Reset,
            },
        }
        if flow.ended && flow.peer_ended && flow.shut {
            return Ending::Ended;
        }
    }
}

#[derive(Debug, Default)]
struct FlowState {
    /// Data from the peer that has not been written to the connection.
    taken: VecDeque<u8>,
    /// The connection's data has ended.
    ended: bool,
    /// The peer's data has ended.
    peer_ended: bool,
    /// The connection accepts no more data, because it was shut down for writing or has failed.
    shut: bool,
    /// A write reported that the other side of the connection has reset it.
    was_reset: bool,
}

impl FlowState {
    fn can_write(&self) -> bool {
        !self.shut && (self.peer_ended || !self.taken.is_empty())
    }
}

/// Moves the next bytes of a connection to the stream. Returns 0 at the end of the data. Reads into a buffer on the
/// stack, so that a waiting flow needs no buffer on the heap.
fn poll_move<R: AsyncRead>(from: Pin<&mut R>, stream: &Stream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
    let capacity = ready!(stream.poll_capacity(cx))?;
    let mut buffer = [MaybeUninit::uninit(); READ_BYTES_MAX];
    let mut piece = ReadBuf::uninit(buffer.get_mut(..READ_BYTES_MAX.min(capacity)).unwrap_or_default());
    ready!(from.poll_read(cx, &mut piece))?;
    stream.push(piece.filled());
    Poll::Ready(Ok(piece.filled().len()))
}

/// Writes some bytes. Shuts the connection down for writing if no bytes are left.
async fn write_taken<W: AsyncWrite + Unpin>(to: &mut W, taken: &VecDeque<u8>) -> io::Result<usize> {
    match taken.as_slices() {
        ([], _) => to.shutdown().await.map(|()| 0),
        (front, _) => match to.write(front).await? {
            0 => Err(io::ErrorKind::WriteZero.into()),
            written => Ok(written),
        },
    }
}
