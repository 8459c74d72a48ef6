// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The exchange of preambles at the start of a connection.
//!
//! Exactly the preamble is read, so that the bytes after it stay in the stream. The caller sets the timeout.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use waggle_protocol::handshake::{self, HandshakeRefusal, Link, PREAMBLE_BYTES};

/// The reason why the exchange of preambles failed.
#[derive(Debug, thiserror::Error)]
pub enum GreetFault {
    /// The connection broke.
    #[error("failed to exchange the preamble")]
    Io {
        /// The error of the stream.
        source: io::Error,
    },
    /// One side refused the other.
    #[error("the link was refused")]
    Refused {
        /// The reason.
        source: HandshakeRefusal,
    },
}

/// Sends the preamble of `link` and reads the verdict: the agent's part.
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

/// Reads the preamble on a connection to the port of `expected`, and answers with a verdict: the host's part.
///
/// # Errors
/// [`GreetFault`], also if the stream ends early. The peer has received a refusal by then.
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
