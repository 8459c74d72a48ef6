// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The task that moves the frames of a link, and the handles to it.
//!
//! The task reads at all times, even while a write is blocked, so two sides that only write cannot deadlock. Only one
//! side of a link opens streams. Each [`Breach`] ends the link.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{mpsc, watch},
};
use waggle_protocol::handshake::Link;

use crate::{
    breach::Breach,
    header::{Frame, HEADER_BYTES},
    limits::{LinkLimits, READ_BYTES_MAX, WRITE_BYTES_MAX},
    records::Records,
    state::{Shared, State},
    stream::Stream,
};

/// The reason why a link ended.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LinkFault {
    /// The peer closed the connection.
    #[error("peer closed the link")]
    Closed,
    /// The connection failed.
    #[error("the link failed: {message}")]
    Failed { message: String },
    /// The peer broke a rule of the link.
    #[error("{breach}")]
    Breach { breach: Breach },
}

/// A handle to the side that opens streams. The link ends when the last clone of the handle is dropped, or when the
/// connection fails.
#[derive(Clone, Debug)]
pub struct Opener {
    link: Arc<LinkHandle>,
}

impl Opener {
    /// Starts a link over `records`, whose handshake must be complete. The link's task ends with the link.
    pub fn start<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(records: Records<S>, link: Link) -> Self {
        Self { link: Arc::new(LinkHandle::start(records, LinkLimits::of(link), None)) }
    }

    /// Opens a stream. Waits while the link is at its limit of streams. The peer learns of the stream with the first
    /// data on it.
    ///
    /// # Errors
    /// The reason why the link ended.
    pub async fn open(&self) -> Result<Stream, LinkFault> {
        let shared = &self.link.shared;
        if let Ok(permit) = shared.stream_permits.acquire().await
            && let Some(number) = shared.with(State::open)
        {
            // The permit returns when both sides have closed the stream.
            permit.forget();
            return Ok(Stream::new(Arc::clone(shared), number));
        }
        Err(self.ended().await)
    }

    /// Returns the credit in bytes that this side's streams can still borrow.
    #[must_use]
    pub fn pool_left(&self) -> usize {
        self.link.shared.with(|state| state.pool_left())
    }

    /// Waits until the link has ended, and returns the reason.
    pub async fn ended(&self) -> LinkFault {
        self.link.ended().await
    }
}

/// A handle to the side that accepts streams. The link ends when the handle is dropped, or when the connection fails.
#[derive(Debug)]
pub struct Acceptor {
    streams: mpsc::Receiver<Stream>,
    link: LinkHandle,
}

impl Acceptor {
    /// Starts a link over `records`, whose handshake must be complete. The link's task ends with the link.
    pub fn start<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(records: Records<S>, link: Link) -> Self {
        let limits = LinkLimits::of(link);
        let (arrivals, streams) = mpsc::channel(limits.streams_max);
        Self { streams, link: LinkHandle::start(records, limits, Some(arrivals)) }
    }

    /// Waits for the next stream from the peer.
    ///
    /// # Errors
    /// The reason why the link ended.
    pub async fn accept(&mut self) -> Result<Stream, LinkFault> {
        match self.streams.recv().await {
            Some(stream) => Ok(stream),
            None => Err(self.link.ended().await),
        }
    }

    /// Returns the credit in bytes that this side's streams can still borrow.
    #[must_use]
    pub fn pool_left(&self) -> usize {
        self.link.shared.with(|state| state.pool_left())
    }
}

/// Ends the link when dropped. What waits to be sent is sent as far as the connection accepts it at once.
#[derive(Debug)]
struct LinkHandle {
    shared: Arc<Shared>,
    ended: watch::Receiver<Option<LinkFault>>,
}

impl LinkHandle {
    /// Starts the link's task. The side that accepts streams has a channel for the arrivals.
    fn start<S>(records: Records<S>, limits: LinkLimits, arrivals: Option<mpsc::Sender<Stream>>) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let shared = Arc::new(Shared::new(limits, arrivals.is_none()));
        let (end, ended) = watch::channel(None);
        let mut driver = Driver {
            shared: EndOnDrop(Arc::clone(&shared)),
            records,
            arrivals,
            input: vec![0; READ_BYTES_MAX].into_boxed_slice(),
            input_bytes: 0,
            body: None,
            output: Vec::with_capacity(WRITE_BYTES_MAX),
            written: 0,
        };
        tokio::spawn(async move {
            let fault = poll_fn(|cx| driver.poll(cx)).await;
            end.send_replace(Some(fault));
        });
        Self { shared, ended }
    }

    async fn ended(&self) -> LinkFault {
        match self.ended.clone().wait_for(Option::is_some).await {
            Ok(fault) => fault.clone().unwrap_or(LinkFault::Closed),
            Err(_driver_gone) => LinkFault::Closed,
        }
    }
}

impl Drop for LinkHandle {
    fn drop(&mut self) {
        self.shared.end();
    }
}

/// Ends the streams when the driver ends for any reason.
struct EndOnDrop(Arc<Shared>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end();
    }
}

struct Driver<S> {
    shared: EndOnDrop,
    records: Records<S>,
    arrivals: Option<mpsc::Sender<Stream>>,
    input: Box<[u8]>,
    /// Number of bytes at the start of `input` that belong to an incomplete header.
    input_bytes: usize,
    /// The stream and the missing length of the body that is being received.
    body: Option<(u32, usize)>,
    output: Vec<u8>,
    /// Number of bytes of `output` that have been written.
    written: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<LinkFault> {
        loop {
            let written = self.poll_write(cx);
            if written.is_pending() && self.shared.0.with(|state| state.ended) {
                return Poll::Ready(LinkFault::Closed);
            }
            match (written, self.poll_read(cx)) {
                (_, Poll::Ready(Err(fault))) | (Poll::Ready(Err(fault)), Poll::Pending) => return Poll::Ready(fault),
                (Poll::Pending, Poll::Pending) => return Poll::Pending,
                // After a failed write, data that has arrived is still read.
                (_, Poll::Ready(Ok(()))) | (Poll::Ready(Ok(())), Poll::Pending) => {}
            }
        }
    }

    /// Writes once to the connection.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkFault>> {
        if self.written == self.output.len() {
            self.output.clear();
            self.written = 0;
            self.shared.0.with(|state| state.fill(&mut self.output, cx));
        }
        let rest = self.output.get(self.written..).unwrap_or_default();
        if rest.is_empty() {
            // The end of the last record may still wait.
            ready!(Pin::new(&mut self.records).poll_flush(cx)).map_err(failed)?;
            return Poll::Pending;
        }
        let written = ready!(Pin::new(&mut self.records).poll_write(cx, rest)).map_err(failed)?;
        self.written += written;
        // The output fits into one record, which this completes.
        ready!(Pin::new(&mut self.records).poll_flush(cx)).map_err(failed)?;
        Poll::Ready(Ok(()))
    }

    /// Reads once from the connection.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkFault>> {
        let mut free = ReadBuf::new(self.input.get_mut(self.input_bytes..).unwrap_or_default());
        ready!(Pin::new(&mut self.records).poll_read(cx, &mut free)).map_err(failed)?;
        let read = free.filled().len();
        if read == 0 {
            return Poll::Ready(Err(LinkFault::Closed));
        }
        let bytes = self.input_bytes + read;
        let mut opened = Vec::new();
        let Self { shared, input, body, .. } = self;
        let input = input.get(..bytes).unwrap_or_default();
        let rest = shared.0.with(|state| process(state, input, body, &mut opened));
        let rest = rest.map_err(|breach| LinkFault::Breach { breach })?;
        self.input.copy_within(bytes - rest..bytes, 0);
        self.input_bytes = rest;
        for number in opened {
            let stream = Stream::new(Arc::clone(&self.shared.0), number);
            // The channel has space for all streams. If the acceptor is gone, the stream is dropped.
            drop(self.arrivals.as_ref().map(|arrivals| arrivals.try_send(stream)));
        }
        Poll::Ready(Ok(()))
    }
}

/// Processes received bytes. Returns the length of an incomplete header at their end.
fn process(
    state: &mut State,
    mut bytes: &[u8],
    body: &mut Option<(u32, usize)>,
    opened: &mut Vec<u32>,
) -> Result<usize, Breach> {
    loop {
        if let Some((stream, missing)) = body {
            let (part, rest) = bytes.split_at((*missing).min(bytes.len()));
            state.on_data(*stream, part);
            *missing -= part.len();
            bytes = rest;
            if *missing > 0 {
                return Ok(0);
            }
        }
        *body = None;
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return Ok(bytes.len()) };
        let (frame, stream) = Frame::decode(*header)?;
        if state.on_frame(frame, stream)? {
            opened.push(stream);
        }
        if let Frame::Data { bytes } = frame {
            *body = Some((stream, bytes as usize));
        }
        bytes = rest;
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is for map_err")]
fn failed(fault: io::Error) -> LinkFault {
    // A peer that closes its end before it has read everything resets the connection. A peer that is killed may leave
    // half a record.
    let is_closed = matches!(
        fault.kind(),
        io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::WriteZero
            | io::ErrorKind::UnexpectedEof
    );
    if is_closed {
        return LinkFault::Closed;
    }
    if let Some(breach) = fault.get_ref().and_then(|inner| inner.downcast_ref()) {
        return LinkFault::Breach { breach: *breach };
    }
    LinkFault::Failed { message: fault.to_string() }
}
