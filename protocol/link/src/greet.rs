// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The exchange of preambles at the start of a connection.
//!
//! Only the preamble is read; the bytes after it stay in the stream. The caller must set a timeout.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use waggle_protocol::handshake::{self, HandshakeRefusal, Link, PREAMBLE_BYTES};

/// The reason why the exchange of preambles failed.
#[derive(Debug, thiserror::Error)]
pub enum GreetFault {
    /// The connection failed.
    #[error("failed to exchange the preamble")]
    Io { source: io::Error },
    /// One side refused the other.
    #[error("the link was refused")]
    Refused { source: HandshakeRefusal },
}

/// The agent's part: sends the preamble of `link` and reads the verdict.
///
/// # Errors
/// [`GreetFault`], also if the stream ends early.
pub async fn send_preamble<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, link: Link) -> Result<(), GreetFault> {
    let io = |source| GreetFault::Io { source };
    stream.write_all(&handshake::preamble(link)).await.map_err(io)?;
    stream.flush().await.map_err(io)?;
    let mut answer = [0; PREAMBLE_BYTES];
    stream.read_exact(&mut answer).await.map_err(io)?;
    handshake::read_answer(answer, link).map_err(|source| GreetFault::Refused { source })
}

/// The host's part: reads the preamble on a connection to the port of `expected`, and answers with a verdict.
///
/// # Errors
/// [`GreetFault`], also if the stream ends early. A refused peer receives the verdict first. A peer that does not speak
/// waggle receives nothing.
pub async fn answer_preamble<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    expected: Link,
) -> Result<(), GreetFault> {
    let io = |source| GreetFault::Io { source };
    let mut preamble = [0; PREAMBLE_BYTES];
    stream.read_exact(&mut preamble).await.map_err(io)?;
    let (answer, verdict) = handshake::check_preamble(preamble, expected);
    if let Some(answer) = answer {
        stream.write_all(&answer).await.map_err(io)?;
        stream.flush().await.map_err(io)?;
    }
    verdict.map_err(|source| GreetFault::Refused { source })
}
