// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Messages over a byte stream. Reading and writing are cancel-safe: if a future is dropped, the next call continues
//! where the dropped one stopped.

use std::io::{self, Cursor};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use waggle_protocol::{
    FRAME_BYTES_MAX,
    frame::{self, FrameFault, PREFIX_BYTES},
};

/// Reads messages from a byte stream.
#[derive(Debug)]
pub struct FrameReader<R> {
    stream: R,
    /// The part of the current frame that was received, including the prefix.
    frame: Vec<u8>,
    body_bytes_max: usize,
}

/// The reason why no message was received. The stream is unusable afterwards.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveFault {
    /// The stream failed, or ended within a frame.
    #[error("failed to read a frame")]
    Io { source: io::Error },
    /// The peer sent an invalid frame.
    #[error("received an invalid frame")]
    Frame { source: FrameFault },
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Returns a reader for messages of up to [`FRAME_BYTES_MAX`].
    pub fn new(stream: R) -> Self {
        Self::bounded(stream, FRAME_BYTES_MAX)
    }

    /// Returns a reader that rejects messages longer than `body_bytes_max`, which is capped at [`FRAME_BYTES_MAX`].
    pub fn bounded(stream: R, body_bytes_max: usize) -> Self {
        Self { stream, frame: Vec::new(), body_bytes_max: body_bytes_max.min(FRAME_BYTES_MAX) }
    }

    /// Waits for the next message. Returns `None` if the stream ended between two messages. The message borrows from
    /// this reader.
    ///
    /// Dropping the future keeps the received bytes for the next call.
    ///
    /// # Errors
    /// [`ReceiveFault`]; the stream is unusable afterwards.
    pub async fn receive<'a, T: Deserialize<'a>>(&'a mut self) -> Result<Option<T>, ReceiveFault> {
        if !self.fill().await? {
            return Ok(None);
        }
        let body = self.frame.get(PREFIX_BYTES..).unwrap_or_default();
        frame::decode(body).map(Some).map_err(|source| ReceiveFault::Frame { source })
    }

    /// Reads the rest of the current frame. Returns false if the stream ended between two frames.
    async fn fill(&mut self) -> Result<bool, ReceiveFault> {
        if self.missing()? == 0 {
            self.frame.clear();
        }
        loop {
            let missing = self.missing()?;
            if missing == 0 {
                return Ok(true);
            }
            self.frame.reserve(missing);
            let limit = u64::try_from(missing).unwrap_or(u64::MAX);
            let read = (&mut self.stream).take(limit).read_buf(&mut self.frame).await;
            match read.map_err(|source| ReceiveFault::Io { source })? {
                0 if self.frame.is_empty() => return Ok(false),
                0 => return Err(ReceiveFault::Io { source: io::ErrorKind::UnexpectedEof.into() }),
                _ => {}
            }
        }
    }

    /// Returns the number of missing bytes. Until the prefix is complete, only the bytes of the prefix count.
    fn missing(&self) -> Result<usize, ReceiveFault> {
        match self.frame.first_chunk::<PREFIX_BYTES>() {
            None => Ok(PREFIX_BYTES - self.frame.len()),
            Some(prefix) => {
                let body = frame::body_bytes(*prefix, self.body_bytes_max);
                let body = body.map_err(|source| ReceiveFault::Frame { source })?;
                Ok((PREFIX_BYTES + body).saturating_sub(self.frame.len()))
            }
        }
    }

    /// Returns the stream, positioned right behind the last message.
    pub fn stream_mut(&mut self) -> &mut R {
        &mut self.stream
    }
}

/// Writes messages to a byte stream.
#[derive(Debug)]
pub struct FrameWriter<W> {
    stream: W,
    /// Encoded frames. The cursor's position is the start of the unwritten part.
    pending: Cursor<Vec<u8>>,
}

/// The reason why a message was not sent.
#[derive(Debug, thiserror::Error)]
pub enum SendFault {
    /// The stream failed, or the peer reset it.
    #[error("failed to write a frame")]
    Io { source: io::Error },
    /// The message does not fit into a frame.
    #[error("failed to encode a frame")]
    Frame { source: FrameFault },
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    pub fn new(stream: W) -> Self {
        Self { stream, pending: Cursor::default() }
    }

    /// Sends one message.
    ///
    /// Dropping the future keeps the unwritten bytes; the next send or [`Self::finish`] writes them first.
    ///
    /// # Errors
    /// [`SendFault`]; after `Io` the stream is unusable, after `Frame` the stream is unchanged.
    pub async fn send<T: Serialize>(&mut self, message: &T) -> Result<(), SendFault> {
        frame::encode(message, self.pending.get_mut()).map_err(|source| SendFault::Frame { source })?;
        self.flush().await
    }

    /// Writes the pending messages. Dropping the future keeps the unwritten bytes.
    ///
    /// # Errors
    /// [`SendFault::Io`].
    pub async fn flush(&mut self) -> Result<(), SendFault> {
        let io = |source| SendFault::Io { source };
        self.stream.write_all_buf(&mut self.pending).await.map_err(io)?;
        self.pending.get_mut().clear();
        self.pending.set_position(0);
        self.stream.flush().await.map_err(io)
    }

    /// Writes the pending messages and ends this direction of the stream.
    ///
    /// # Errors
    /// [`SendFault::Io`].
    pub async fn finish(&mut self) -> Result<(), SendFault> {
        self.flush().await?;
        self.stream.shutdown().await.map_err(|source| SendFault::Io { source })
    }

    /// Returns the stream, positioned right behind the last message that was sent.
    pub fn stream_mut(&mut self) -> &mut W {
        &mut self.stream
    }
}
