// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The task that polls a yamux connection, and the handles to it.
//!
//! Only one side of a link opens streams. A stream that the other side opens ends the link, and so does every
//! [`Breach`].

use std::{
    future::poll_fn,
    io,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{mpsc, oneshot, watch},
    task::AbortHandle,
};
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};
use waggle_protocol::handshake::Link;
use yamux::{Connection, ConnectionError, FrameDecodeError, Mode};

use crate::{
    backlog::Backlog,
    breach::Breach,
    limits::LinkLimits,
    pump::Pump,
    records::Records,
    rules::RuleChecker,
    stream::{BufferCounts, Stream},
    unread::Unread,
};

/// The reason why a link ended, or why a stream could not be opened.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LinkFault {
    /// The peer closed the connection.
    #[error("peer closed the link")]
    Closed,
    /// The connection failed, or carried invalid yamux frames.
    #[error("the link failed: {message}")]
    Failed { message: String },
    /// The peer broke a rule of the link.
    #[error("{breach}")]
    Breach { breach: Breach },
    /// The peer opened a stream on a link where only this side opens streams.
    #[error("peer opened a stream; only this side may open streams on this link")]
    UnexpectedStream,
    /// The link has reached its limit of open streams.
    #[error("too many streams are open on the link")]
    TooManyStreams,
}

/// A handle to the side that opens streams. The link ends when the last clone of the handle is dropped, or when the
/// connection fails.
#[derive(Clone, Debug)]
pub struct Opener {
    requests: mpsc::Sender<OpenRequest>,
    ended: watch::Receiver<Option<LinkFault>>,
}

type OpenRequest = oneshot::Sender<Result<Stream, LinkFault>>;

impl Opener {
    /// Starts yamux over `records`, whose handshake must be complete. The task that polls yamux ends with the link.
    pub fn start<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(records: Records<S>, link: Link) -> Self {
        let limits = LinkLimits::of(link);
        let (requests, receiver) = mpsc::channel(limits.queue);
        let (_driver, ended) = spawn(records, limits, Mode::Client, Side::Opens(receiver));
        Self { requests, ended }
    }

    /// Opens a stream. The peer learns of the stream with the first message on it.
    ///
    /// # Errors
    /// [`LinkFault::TooManyStreams`], or the reason why the link ended.
    pub async fn open(&self) -> Result<Stream, LinkFault> {
        let (reply, stream) = oneshot::channel();
        if self.requests.send(reply).await.is_err() {
            return Err(self.ended().await);
        }
        match stream.await {
            Ok(opened) => opened,
            Err(_dropped) => Err(self.ended().await),
        }
    }

    /// Waits until the link has ended, and returns the reason.
    pub async fn ended(&self) -> LinkFault {
        wait_for_end(self.ended.clone()).await
    }
}

/// A handle to the side that accepts streams. The link ends when the handle is dropped, or when the connection fails.
#[derive(Debug)]
pub struct Acceptor {
    streams: mpsc::Receiver<Stream>,
    ended: watch::Receiver<Option<LinkFault>>,
    driver: AbortHandle,
}

impl Acceptor {
    /// Starts yamux over `records`, whose handshake must be complete. The task that polls yamux ends with the link.
    pub fn start<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(records: Records<S>, link: Link) -> Self {
        let limits = LinkLimits::of(link);
        let (arrivals, streams) = mpsc::channel(limits.queue);
        let (driver, ended) = spawn(records, limits, Mode::Server, Side::Accepts(arrivals));
        Self { streams, ended, driver }
    }

    /// Waits for the next stream from the peer.
    ///
    /// # Errors
    /// The reason why the link ended.
    pub async fn accept(&mut self) -> Result<Stream, LinkFault> {
        match self.streams.recv().await {
            Some(stream) => Ok(stream),
            None => Err(wait_for_end(self.ended.clone()).await),
        }
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

async fn wait_for_end(mut ended: watch::Receiver<Option<LinkFault>>) -> LinkFault {
    match ended.wait_for(Option::is_some).await {
        Ok(fault) => fault.clone().unwrap_or(LinkFault::Closed),
        Err(_driver_gone) => LinkFault::Closed,
    }
}

fn spawn<S>(
    records: Records<S>,
    limits: LinkLimits,
    mode: Mode,
    side: Side,
) -> (AbortHandle, watch::Receiver<Option<LinkFault>>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (end, ended) = watch::channel(None);
    let (pump_bytes_max, unread_bytes_max) = match side {
        Side::Opens(_) => (limits.opener_pump_bytes_max, limits.opener_unread_bytes_max),
        Side::Accepts(_) => (limits.acceptor_pump_bytes_max, limits.acceptor_unread_bytes_max),
    };
    let counts = Arc::new(BufferCounts { backlog: Backlog::default(), unread: Unread::new(unread_bytes_max) });
    let rules = RuleChecker::new(Pump::new(records.gather(), pump_bytes_max), Arc::clone(&counts));
    let mut connection = Connection::new(rules.compat(), limits.config(), mode);
    let mut side = side;
    let counts = CloseOnDrop(counts);
    let task = tokio::spawn(async move {
        let fault = poll_fn(|cx| poll(&mut connection, &mut side, &counts.0, cx)).await;
        end.send_replace(Some(fault));
    });
    (task.abort_handle(), ended)
}

/// Closes the backlog when the driver ends for any reason, so that no stream waits for capacity in vain.
struct CloseOnDrop(Arc<BufferCounts>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.backlog.close();
    }
}

/// The driver's side of the channel to the [`Opener`] or [`Acceptor`].
enum Side {
    Opens(mpsc::Receiver<OpenRequest>),
    Accepts(mpsc::Sender<Stream>),
}

fn poll<S>(
    connection: &mut Connection<Compat<RuleChecker<Pump<Records<S>>>>>,
    side: &mut Side,
    counts: &Arc<BufferCounts>,
    cx: &mut Context<'_>,
) -> Poll<LinkFault>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        match (connection.poll_next_inbound(cx), &*side) {
            (Poll::Ready(Some(Ok(_stream))), Side::Opens(_)) => return Poll::Ready(LinkFault::UnexpectedStream),
            (Poll::Ready(Some(Ok(stream))), Side::Accepts(arrivals)) => {
                // A full queue means that the peer has too many streams open. The new stream is then dropped and
                // thereby reset.
                drop(arrivals.try_send(Stream::new(stream, Arc::clone(counts))));
                continue;
            }
            (Poll::Ready(Some(Err(fault))), _) => {
                return Poll::Ready(link_fault(&fault));
            }
            (Poll::Ready(None), _) => return Poll::Ready(LinkFault::Closed),
            (Poll::Pending, _) => {}
        }
        let Side::Opens(requests) = side else { return Poll::Pending };
        match requests.poll_recv(cx) {
            // If the requester no longer waits, the new stream is dropped and thereby reset. The loop polls the
            // connection again, because yamux serves a new stream only from the connection's next poll on.
            Poll::Ready(Some(reply)) => drop(reply.send(open(connection, counts, cx))),
            Poll::Ready(None) => return Poll::Ready(LinkFault::Closed),
            Poll::Pending => return Poll::Pending,
        }
    }
}

fn open<S>(
    connection: &mut Connection<Compat<RuleChecker<Pump<Records<S>>>>>,
    counts: &Arc<BufferCounts>,
    cx: &mut Context<'_>,
) -> Result<Stream, LinkFault>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match connection.poll_new_outbound(cx) {
        Poll::Ready(Ok(stream)) => Ok(Stream::new(stream, Arc::clone(counts))),
        Poll::Ready(Err(ConnectionError::TooManyStreams)) | Poll::Pending => Err(LinkFault::TooManyStreams),
        Poll::Ready(Err(fault)) => Err(link_fault(&fault)),
    }
}

fn link_fault(fault: &ConnectionError) -> LinkFault {
    let broken = match fault {
        ConnectionError::Io(fault) | ConnectionError::Decode(FrameDecodeError::Io(fault)) => Some(fault),
        ConnectionError::Decode(_)
        | ConnectionError::NoMoreStreamIds
        | ConnectionError::Closed
        | ConnectionError::TooManyStreams
        | ConnectionError::InvalidWindowUpdate
        | _ => None,
    };
    // A peer that closes its end before it has read everything resets the connection.
    let closed = broken.map(io::Error::kind);
    match (broken.and_then(Breach::of), closed) {
        (Some(breach), _) => LinkFault::Breach { breach },
        (None, Some(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)) => LinkFault::Closed,
        (None, _) => LinkFault::Failed { message: fault.to_string() },
    }
}
