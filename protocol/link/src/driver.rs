// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The one task that polls a yamux connection, and the handles that its users hold.
//!
//! On a link only one side opens streams. One that comes from the other side ends the link, and so does anything else
//! that breaks the rules: see [`crate::Breach`].

use std::{
    future::poll_fn,
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
    Pump,
    backlog::Backlog,
    batch::Batch,
    rules::{Breach, Rules},
    shape::Shape,
    stream::{Shared, Stream},
    unread::Unread,
};

/// Why a link ended, or a stream could not be opened.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LinkFault {
    /// The other side closed the connection.
    #[error("the other side closed the link")]
    Closed,
    /// The connection broke, or something else than yamux came over it.
    #[error("the link failed: {message}")]
    Failed {
        /// What yamux said.
        message: String,
    },
    /// The other side broke the link's rules.
    #[error("{breach}")]
    Breach {
        /// Which one.
        breach: Breach,
    },
    /// The other side opened a stream that was not its to open.
    #[error("the other side opened a stream on a link where only this side may")]
    UnexpectedStream,
    /// As many streams are open as the link may have.
    #[error("as many streams are open as a link may have")]
    TooManyStreams,
}

/// The side that opens streams. The link lives until the last clone is dropped, or it fails.
#[derive(Clone, Debug)]
pub struct Opener {
    requests: mpsc::Sender<Request>,
    ended: watch::Receiver<Option<LinkFault>>,
}

type Request = oneshot::Sender<Result<Stream, LinkFault>>;

impl Opener {
    /// Starts yamux over `stream`, after the greeting, on a task that ends with the link.
    pub fn start<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(stream: S, link: Link) -> Self {
        let shape = Shape::of(link);
        let (requests, asked) = mpsc::channel(shape.queue);
        let (_driver, ended) = spawn(stream, shape, Mode::Client, Side::Opens(asked));
        Self { requests, ended }
    }

    /// Opens a stream; the other side hears of it with the first message.
    ///
    /// # Errors
    /// [`LinkFault::TooManyStreams`], or why the link ended.
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

    /// Waits until the link has ended, and says why.
    pub async fn ended(&self) -> LinkFault {
        why_ended(self.ended.clone()).await
    }
}

/// The side that accepts streams. The link lives until this is dropped, or it fails.
#[derive(Debug)]
pub struct Acceptor {
    streams: mpsc::Receiver<Stream>,
    ended: watch::Receiver<Option<LinkFault>>,
    driver: AbortHandle,
}

impl Acceptor {
    /// Starts yamux over `stream`, after the greeting, on a task that ends with the link.
    pub fn start<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(stream: S, link: Link) -> Self {
        let shape = Shape::of(link);
        let (arrivals, streams) = mpsc::channel(shape.queue);
        let (driver, ended) = spawn(stream, shape, Mode::Server, Side::Accepts(arrivals));
        Self { streams, ended, driver }
    }

    /// The next stream that the other side opened.
    ///
    /// # Errors
    /// Why the link has ended.
    pub async fn accept(&mut self) -> Result<Stream, LinkFault> {
        match self.streams.recv().await {
            Some(stream) => Ok(stream),
            None => Err(why_ended(self.ended.clone()).await),
        }
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

async fn why_ended(mut ended: watch::Receiver<Option<LinkFault>>) -> LinkFault {
    match ended.wait_for(Option::is_some).await {
        Ok(fault) => fault.clone().unwrap_or(LinkFault::Closed),
        Err(_driver_gone) => LinkFault::Closed,
    }
}

fn spawn<S>(stream: S, shape: Shape, mode: Mode, side: Side) -> (AbortHandle, watch::Receiver<Option<LinkFault>>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (end, ended) = watch::channel(None);
    let (pump_bytes_max, unread_bytes_max) = match side {
        Side::Opens(_) => (shape.opener_pump_bytes_max, shape.opener_unread_bytes_max),
        Side::Accepts(_) => (shape.acceptor_pump_bytes_max, shape.acceptor_unread_bytes_max),
    };
    let shared = Arc::new(Shared { backlog: Backlog::default(), unread: Unread::new(unread_bytes_max) });
    let rules = Rules::new(Pump::new(Batch::new(stream), pump_bytes_max), Arc::clone(&shared));
    let mut connection = Connection::new(rules.compat(), shape.config(), mode);
    let mut side = side;
    let shared = Closing(shared);
    let task = tokio::spawn(async move {
        let fault = poll_fn(|cx| poll(&mut connection, &mut side, &shared.0, cx)).await;
        end.send_replace(Some(fault));
    });
    (task.abort_handle(), ended)
}

/// Closes the backlog with the driver, however that ends.
struct Closing(Arc<Shared>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.backlog.close();
    }
}

/// What a side does with streams.
enum Side {
    Opens(mpsc::Receiver<Request>),
    Accepts(mpsc::Sender<Stream>),
}

fn poll<S>(
    connection: &mut Connection<Compat<Rules<Pump<Batch<S>>>>>,
    side: &mut Side,
    shared: &Arc<Shared>,
    cx: &mut Context<'_>,
) -> Poll<LinkFault>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        match (connection.poll_next_inbound(cx), &*side) {
            (Poll::Ready(Some(Ok(_stream))), Side::Opens(_)) => return Poll::Ready(LinkFault::UnexpectedStream),
            (Poll::Ready(Some(Ok(stream))), Side::Accepts(arrivals)) => {
                // A full queue resets the stream: its opener has more open than it may.
                drop(arrivals.try_send(Stream::new(stream, Arc::clone(shared))));
                continue;
            }
            (Poll::Ready(Some(Err(fault))), _) => {
                return Poll::Ready(why(&fault));
            }
            (Poll::Ready(None), _) => return Poll::Ready(LinkFault::Closed),
            (Poll::Pending, _) => {}
        }
        let Side::Opens(asked) = side else { return Poll::Pending };
        match asked.poll_recv(cx) {
            // The asker may have gone; its stream is then dropped, which resets it. The connection is polled again
            // either way: yamux listens to a new stream only from its next poll on.
            Poll::Ready(Some(reply)) => drop(reply.send(open(connection, shared, cx))),
            Poll::Ready(None) => return Poll::Ready(LinkFault::Closed),
            Poll::Pending => return Poll::Pending,
        }
    }
}

fn open<S>(
    connection: &mut Connection<Compat<Rules<Pump<Batch<S>>>>>,
    shared: &Arc<Shared>,
    cx: &mut Context<'_>,
) -> Result<Stream, LinkFault>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match connection.poll_new_outbound(cx) {
        Poll::Ready(Ok(stream)) => Ok(Stream::new(stream, Arc::clone(shared))),
        Poll::Ready(Err(ConnectionError::TooManyStreams)) | Poll::Pending => Err(LinkFault::TooManyStreams),
        Poll::Ready(Err(fault)) => Err(why(&fault)),
    }
}

fn why(fault: &ConnectionError) -> LinkFault {
    let broken = match fault {
        ConnectionError::Io(fault) | ConnectionError::Decode(FrameDecodeError::Io(fault)) => Some(fault),
        ConnectionError::Decode(_)
        | ConnectionError::NoMoreStreamIds
        | ConnectionError::Closed
        | ConnectionError::TooManyStreams
        | ConnectionError::InvalidWindowUpdate
        | _ => None,
    };
    match broken.and_then(Breach::of) {
        Some(breach) => LinkFault::Breach { breach },
        None => LinkFault::Failed { message: fault.to_string() },
    }
}
