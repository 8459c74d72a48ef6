// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The beginning of a generation, which [`waggle_protocol::generation`] describes. Whatever an earlier process has left
//! in the stream is discarded, in both directions at the same time: otherwise two sides that only write would block
//! each other.

use std::{
    future::poll_fn,
    io::{self, Cursor},
    pin::Pin,
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, split},
    task::coop,
    time::sleep,
};
use waggle_protocol::generation::{BREAK, BREAK_BYTES, MARKER, NONCE_BYTES, Nonce, OPENING_BYTES, Opening, tag};

use crate::records::{Input, Records};

/// Interval at which the guest repeats its `Dial`.
const REPEAT: Duration = Duration::from_millis(100);

/// Maximum number of discarded bytes in one direction before the beginning of a generation. A port has 32 MiB in
/// flight at most, and the sockets behind it have less than 1 MiB.
const DISCARDED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Whether bytes of an earlier process may be in a stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Past {
    /// The stream is new.
    None,
    /// An earlier process may have used the stream, and the peer may still serve that process.
    Unknown,
    /// Only for the host: the guest has already dialled with this nonce, on another stream. The guest is a copy of the
    /// machine that dialled there.
    Dialled(Nonce),
}

/// The reason why no generation began.
#[derive(Debug, thiserror::Error)]
pub enum OpeningFault {
    /// The stream failed or ended.
    #[error("the stream failed")]
    Io { source: io::Error },
    /// The peer sent too many bytes without an opening between them.
    #[error("the peer sent {} MiB that are not the beginning of a link", DISCARDED_BYTES_MAX >> 20)]
    Garbage,
    /// The system has no random bytes.
    #[error("failed to draw a random nonce")]
    Random { source: getrandom::Error },
}

impl From<io::Error> for OpeningFault {
    fn from(source: io::Error) -> Self {
        Self::Io { source }
    }
}

/// The guest's part: dials until the host answers, and starts the generation.
///
/// The caller must set a timeout.
///
/// # Errors
/// [`OpeningFault`], also if the stream ends.
pub async fn begin<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, past: Past) -> Result<Records<S>, OpeningFault> {
    let guest = random()?;
    let dial = Opening::Dial { guest }.encode();
    let mut reader = OpeningReader::new();
    let mut writer = PendingBytes::new(past);
    let (mut read, mut write) = split(&mut stream);
    let host = {
        let answered = async {
            loop {
                match reader.next(&mut read).await? {
                    Opening::Answer { guest: dialled, host } if dialled == guest => return Ok::<_, OpeningFault>(host),
                    Opening::Answer { .. } | Opening::Dial { .. } | Opening::Start { .. } => {}
                }
            }
        };
        tokio::select! {
            biased;
            host = answered => host?,
            fault = keep_dialling(&mut writer, &mut write, &dial) => return Err(fault),
        }
    };
    writer.push(&Opening::Start { guest, host }.encode());
    writer.write(&mut write).await?;
    Ok(Records::new(stream, tag(host), reader.input))
}

async fn keep_dialling<W: AsyncWrite + Unpin>(
    writer: &mut PendingBytes,
    stream: &mut W,
    dial: &[u8; OPENING_BYTES],
) -> OpeningFault {
    loop {
        writer.push(dial);
        if let Err(fault) = writer.write(stream).await {
            return fault;
        }
        sleep(REPEAT).await;
    }
}

/// A stream on which the guest has dialled.
#[derive(Debug)]
pub struct Dialled<S> {
    stream: S,
    guest: Nonce,
    reader: OpeningReader,
    writer: PendingBytes,
}

/// The host's part: waits until the guest dials, unless it has dialled already.
///
/// # Errors
/// [`OpeningFault`], also if the stream ends.
pub async fn await_dial<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    past: Past,
) -> Result<Dialled<S>, OpeningFault> {
    let mut reader = OpeningReader::new();
    let mut writer = PendingBytes::new(past);
    if let Past::Dialled(guest) = past {
        return Ok(Dialled { stream, guest, reader, writer });
    }
    let (mut read, mut write) = split(&mut stream);
    let guest = {
        let dialled = async {
            loop {
                if let Opening::Dial { guest } = reader.next(&mut read).await? {
                    return Ok(guest);
                }
            }
        };
        while_writing(&mut writer, &mut write, dialled).await?
    };
    Ok(Dialled { stream, guest, reader, writer })
}

impl<S> Dialled<S> {
    /// The nonce with which the guest has dialled.
    pub fn nonce(&self) -> Nonce {
        self.guest
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Dialled<S> {
    /// Answers, and waits until the guest starts the generation. If the guest dials with another nonce, a new process
    /// has replaced the one that dialled before, and is answered instead.
    ///
    /// The caller must set a timeout.
    ///
    /// # Errors
    /// [`OpeningFault`], also if the stream ends.
    pub async fn answer(self) -> Result<Records<S>, OpeningFault> {
        let Self { mut stream, mut guest, mut reader, mut writer } = self;
        let (mut read, mut write) = split(&mut stream);
        let host = loop {
            let host = random()?;
            writer.push(&Opening::Answer { guest, host }.encode());
            let next = async {
                loop {
                    match reader.next(&mut read).await? {
                        Opening::Start { guest: starting, host: answered } if (starting, answered) == (guest, host) => {
                            return Ok(None);
                        }
                        Opening::Dial { guest: other } if other != guest => return Ok(Some(other)),
                        Opening::Dial { .. } | Opening::Answer { .. } | Opening::Start { .. } => {}
                    }
                }
            };
            match while_writing(&mut writer, &mut write, next).await? {
                None => break host,
                // Without this write, a guest that dials again and again would make the pending bytes grow.
                Some(other) => {
                    writer.write(&mut write).await?;
                    guest = other;
                }
            }
        };
        writer.write(&mut write).await?;
        Ok(Records::new(stream, tag(host), reader.input))
    }
}

/// Waits for `read`, and writes the pending bytes meanwhile.
async fn while_writing<W, T>(
    writer: &mut PendingBytes,
    stream: &mut W,
    read: impl Future<Output = Result<T, OpeningFault>>,
) -> Result<T, OpeningFault>
where
    W: AsyncWrite + Unpin,
{
    let write = async {
        match writer.write(stream).await {
            Ok(()) => std::future::pending().await,
            Err(fault) => Err(fault),
        }
    };
    tokio::select! {
        biased;
        read = read => read,
        fault = write => fault,
    }
}

fn random() -> Result<Nonce, OpeningFault> {
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(|source| OpeningFault::Random { source })?;
    Ok(nonce)
}

/// Finds openings between other bytes.
#[derive(Debug)]
struct OpeningReader {
    input: Input,
    discarded: usize,
}

impl OpeningReader {
    fn new() -> Self {
        Self { input: Input::new(), discarded: 0 }
    }

    /// Waits for the next opening, and leaves the bytes after the opening unread. Cancel-safe.
    async fn next<R: AsyncRead + Unpin>(&mut self, stream: &mut R) -> Result<Opening, OpeningFault> {
        loop {
            if let Some(opening) = self.find() {
                return Ok(opening);
            }
            if self.discarded > DISCARDED_BYTES_MAX {
                return Err(OpeningFault::Garbage);
            }
            // Without this line, a peer that sends faster than this task reads would prevent the task from yielding.
            coop::consume_budget().await;
            if poll_fn(|cx| self.input.poll_fill(Pin::new(&mut *stream), cx)).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }

    /// Consumes all bytes up to the end of the next opening, or those that no opening begins with.
    fn find(&mut self) -> Option<Opening> {
        loop {
            let bytes = self.input.bytes();
            let Some(at) = bytes.iter().position(|byte| MARKER.first() == Some(byte)) else {
                self.discard(bytes.len());
                return None;
            };
            match bytes.get(at..).unwrap_or_default().first_chunk::<OPENING_BYTES>().map(Opening::decode) {
                Some(Some(opening)) => {
                    self.discard(at + OPENING_BYTES);
                    return Some(opening);
                }
                Some(None) => self.discard(at + 1),
                None => {
                    self.discard(at);
                    return None;
                }
            }
        }
    }

    fn discard(&mut self, bytes: usize) {
        self.discarded += bytes;
        self.input.consume(bytes);
    }
}

/// Bytes to write. If a write is cancelled, the next one continues where it stopped, so that no opening is cut.
#[derive(Debug)]
struct PendingBytes(Cursor<Vec<u8>>);

impl PendingBytes {
    /// If the peer may still serve an earlier process, begins with a break.
    fn new(past: Past) -> Self {
        Self(Cursor::new(match past {
            Past::None | Past::Dialled(_) => Vec::new(),
            Past::Unknown => vec![BREAK; BREAK_BYTES],
        }))
    }

    fn push(&mut self, opening: &[u8; OPENING_BYTES]) {
        self.0.get_mut().extend_from_slice(opening);
    }

    async fn write<W: AsyncWrite + Unpin>(&mut self, stream: &mut W) -> Result<(), OpeningFault> {
        stream.write_all_buf(&mut self.0).await?;
        self.0.get_mut().clear();
        self.0.set_position(0);
        Ok(stream.flush().await?)
    }
}
