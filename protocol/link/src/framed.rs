// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Messages over a byte stream. Dropping a future of either half in the middle loses nothing and tears no frame.

use std::io;

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    task::coop,
};
use waggle_protocol::{
    FRAME_BYTES_MAX,
    frame::{self, FrameFault, PREFIX_BYTES},
};

/// Reads messages.
#[derive(Debug)]
pub struct FrameReader<R> {
    stream: R,
    /// The frame that is being read, prefix included. Its length is what has arrived.
    frame: Vec<u8>,
    body_bytes_max: usize,
}

/// A message did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveFault {
    /// The stream broke, or ended within a frame.
    #[error("failed to read a frame")]
    Io {
        /// What the stream said.
        source: io::Error,
    },
    /// The other side sent what is no message.
    #[error("received a bad frame")]
    Frame {
        /// What was wrong.
        source: FrameFault,
    },
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads from `stream`.
    pub fn new(stream: R) -> Self {
        Self::bounded(stream, FRAME_BYTES_MAX)
    }

    /// Reads from `stream` messages whose bodies have at most so many bytes; never above [`FRAME_BYTES_MAX`].
    pub fn bounded(stream: R, body_bytes_max: usize) -> Self {
        Self { stream, frame: Vec::new(), body_bytes_max: body_bytes_max.min(FRAME_BYTES_MAX) }
    }

    /// The next message, or `None` at a clean end of the stream. The message borrows from this reader.
    ///
    /// Dropping the future keeps what has arrived for the next call.
    ///
    /// # Errors
    /// [`ReceiveFault`]; the stream is of no use after one.
    pub async fn receive<'a, T: Deserialize<'a>>(&'a mut self) -> Result<Option<T>, ReceiveFault> {
        // A peer that sends faster than its messages are read would keep this task from ever stopping to look at
        // anything else, its own time-out included: yamux's streams know no budget.
        coop::consume_budget().await;
        if !self.fill().await? {
            return Ok(None);
        }
        let body = self.frame.get(PREFIX_BYTES..).unwrap_or_default();
        frame::decode(body).map(Some).map_err(|source| ReceiveFault::Frame { source })
    }

    /// Completes the frame; false at a clean end.
    async fn fill(&mut self) -> Result<bool, ReceiveFault> {
        if self.wanted()? == 0 {
            self.frame.clear();
        }
        loop {
            let wanted = self.wanted()?;
            if wanted == 0 {
                return Ok(true);
            }
            self.frame.reserve(wanted);
            let limit = u64::try_from(wanted).unwrap_or(u64::MAX);
            let read = (&mut self.stream).take(limit).read_buf(&mut self.frame).await;
            match read.map_err(|source| ReceiveFault::Io { source })? {
                0 if self.frame.is_empty() => return Ok(false),
                0 => return Err(ReceiveFault::Io { source: io::ErrorKind::UnexpectedEof.into() }),
                _ => {}
            }
        }
    }

    /// Bytes that the frame still lacks, as far as can be told: first of the prefix, then of the body.
    fn wanted(&self) -> Result<usize, ReceiveFault> {
        match self.frame.first_chunk::<PREFIX_BYTES>() {
            None => Ok(PREFIX_BYTES - self.frame.len()),
            Some(prefix) => {
                let body = frame::body_bytes(*prefix, self.body_bytes_max);
                let body = body.map_err(|source| ReceiveFault::Frame { source })?;
                Ok((PREFIX_BYTES + body).saturating_sub(self.frame.len()))
            }
        }
    }

    /// The stream itself, which stands right behind the last message.
    pub fn stream_mut(&mut self) -> &mut R {
        &mut self.stream
    }
}

/// Writes messages.
#[derive(Debug)]
pub struct FrameWriter<W> {
    stream: W,
    /// Encoded and not yet written; `sent` bytes of it are.
    pending: Vec<u8>,
    sent: usize,
}

/// A message could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum SendFault {
    /// The stream broke, or the other side reset it.
    #[error("failed to write a frame")]
    Io {
        /// What the stream said.
        source: io::Error,
    },
    /// The message does not fit a frame.
    #[error("failed to make a frame")]
    Frame {
        /// What was wrong.
        source: FrameFault,
    },
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Writes to `stream`.
    pub fn new(stream: W) -> Self {
        Self { stream, pending: Vec::new(), sent: 0 }
    }

    /// Sends one message.
    ///
    /// Dropping the future keeps what has not been written; the next send or [`Self::finish`] writes it first.
    ///
    /// # Errors
    /// [`SendFault`]; after `Io` the stream is of no use, after `Frame` it is as it was.
    pub async fn send<T: Serialize>(&mut self, message: &T) -> Result<(), SendFault> {
        self.queue(message).map_err(|source| SendFault::Frame { source })?;
        self.flush().await
    }

    /// Puts one message behind what is pending, without a wait. Whoever does so bounds what is pending.
    ///
    /// # Errors
    /// What does not fit a frame; nothing has changed then.
    pub fn queue<T: Serialize>(&mut self, message: &T) -> Result<(), FrameFault> {
        frame::encode(message, &mut self.pending)
    }

    /// Whether nothing is pending.
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }

    /// Gives the buffer back if nothing is pending. It is as large as the most that ever was.
    pub fn release(&mut self) {
        if self.is_idle() {
            self.pending = Vec::new();
        }
    }

    /// Writes what is pending. Dropping the future keeps what has not been written.
    ///
    /// # Errors
    /// [`SendFault::Io`].
    pub async fn flush(&mut self) -> Result<(), SendFault> {
        let io = |source| SendFault::Io { source };
        while let Some(rest) = self.pending.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match self.stream.write(rest).await.map_err(io)? {
                0 => return Err(io(io::ErrorKind::WriteZero.into())),
                written => self.sent += written,
            }
        }
        self.pending.clear();
        self.sent = 0;
        self.stream.flush().await.map_err(io)
    }

    /// Writes what is pending and ends this direction of the stream.
    ///
    /// # Errors
    /// [`SendFault::Io`].
    pub async fn finish(&mut self) -> Result<(), SendFault> {
        self.flush().await?;
        self.stream.shutdown().await.map_err(|source| SendFault::Io { source })
    }

    /// The stream itself, which stands right behind the last message that was sent.
    pub fn stream_mut(&mut self) -> &mut W {
        &mut self.stream
    }
}
