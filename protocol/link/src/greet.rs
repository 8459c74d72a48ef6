// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The exchange of preambles at the start of a generation.
//!
//! The caller must set a timeout.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use waggle_protocol::handshake::{self, HandshakeRefusal, Link, PREAMBLE_BYTES};

use crate::{
    generation::{self, Dialled, OpeningFault, Past},
    records::Records,
};

/// The reason why the exchange of preambles failed.
#[derive(Debug, thiserror::Error)]
pub enum GreetFault {
    /// No generation began.
    #[error("failed to begin the link")]
    Opening { source: OpeningFault },
    /// The connection failed.
    #[error("failed to exchange the preamble")]
    Io { source: io::Error },
    /// One side refused the other.
    #[error("the link was refused")]
    Refused { source: HandshakeRefusal },
}

/// The agent's part: begins a generation, sends the preamble of `link` and reads the verdict.
///
/// # Errors
/// [`GreetFault`], also if the stream ends early.
pub async fn dial<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    past: Past,
    link: Link,
) -> Result<Records<S>, GreetFault> {
    let io = |source| GreetFault::Io { source };
    let dialled = generation::begin(stream, past).await;
    let mut records = dialled.map_err(|source| GreetFault::Opening { source })?;
    records.write_all(&handshake::preamble(link)).await.map_err(io)?;
    records.flush().await.map_err(io)?;
    let mut answer = [0; PREAMBLE_BYTES];
    records.read_exact(&mut answer).await.map_err(io)?;
    handshake::read_answer(answer, link).map_err(|source| GreetFault::Refused { source })?;
    Ok(records)
}

/// The host's part: answers a guest that has dialled the port of `expected`, reads its preamble, and sends a verdict.
///
/// # Errors
/// [`GreetFault`], also if the stream ends early. A refused peer receives the verdict first. A peer that does not speak
/// waggle receives nothing.
pub async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
    dialled: Dialled<S>,
    expected: Link,
) -> Result<Records<S>, GreetFault> {
    let io = |source| GreetFault::Io { source };
    let answered = dialled.answer().await;
    let mut records = answered.map_err(|source| GreetFault::Opening { source })?;
    let mut preamble = [0; PREAMBLE_BYTES];
    records.read_exact(&mut preamble).await.map_err(io)?;
    let (answer, verdict) = handshake::check_preamble(preamble, expected);
    if let Some(answer) = answer {
        records.write_all(&answer).await.map_err(io)?;
        records.flush().await.map_err(io)?;
    }
    verdict.map_err(|source| GreetFault::Refused { source })?;
    Ok(records)
}
