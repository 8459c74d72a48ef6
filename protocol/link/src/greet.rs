// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Exchanges the preamble, before anything else is said on a connection.
//!
//! Exactly the preamble's bytes are read, so that what follows stays in the stream. Waiting is bounded by the caller.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use waggle_protocol::handshake::{self, Link, PREAMBLE_BYTES, Refusal};

/// The preamble was not agreed upon.
#[derive(Debug, thiserror::Error)]
pub enum GreetFault {
    /// The connection broke.
    #[error("failed to exchange the preamble")]
    Io {
        /// What the stream said.
        source: io::Error,
    },
    /// One side refused the other.
    #[error("refused the link")]
    Refused {
        /// Why.
        source: Refusal,
    },
}

/// The agent's part: names the link and hears the verdict.
///
/// # Errors
/// [`GreetFault`], also if the stream ends early.
pub async fn present<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, link: Link) -> Result<(), GreetFault> {
    let io = |source| GreetFault::Io { source };
    stream.write_all(&handshake::preamble(link)).await.map_err(io)?;
    stream.flush().await.map_err(io)?;
    let mut answer = [0; PREAMBLE_BYTES];
    stream.read_exact(&mut answer).await.map_err(io)?;
    handshake::read_answer(answer, link).map_err(|source| GreetFault::Refused { source })
}

/// The host's part: judges the preamble on a connection to `expected`'s port.
///
/// # Errors
/// [`GreetFault`], also if the stream ends early. The other side has been told of a refusal by then.
pub async fn answer_preamble<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    expected: Link,
) -> Result<(), GreetFault> {
    let io = |source| GreetFault::Io { source };
    let mut preamble = [0; PREAMBLE_BYTES];
    stream.read_exact(&mut preamble).await.map_err(io)?;
    let (answer, verdict) = handshake::judge(preamble, expected);
    if let Some(answer) = answer {
        stream.write_all(&answer).await.map_err(io)?;
        stream.flush().await.map_err(io)?;
    }
    verdict.map_err(|source| GreetFault::Refused { source })
}
