// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The tools for one client over a pair of streams, one message a line: what a client that starts the server itself
//! speaks.

use rmcp::{
    ServiceExt as _,
    service::{QuitReason, RoleServer, ServerInitializeError},
    transport::async_rw::AsyncRwTransport,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::{REQUEST_BODY_BYTES_MAX, Tools};

/// The process's own input and output.
#[must_use]
pub fn standard_streams() -> (impl AsyncRead + Send + Unpin + 'static, impl AsyncWrite + Send + Unpin + 'static) {
    rmcp::transport::io::stdio_pipes()
}

/// Talks until the input ends, or `stop` is cancelled; either ends the calls that still run.
///
/// # Errors
/// [`ConverseFault`] if the client never greets.
pub async fn converse<R, W>(tools: Tools, input: R, output: W, stop: CancellationToken) -> Result<(), ConverseFault>
where
    R: AsyncRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin + 'static,
{
    let transport =
        AsyncRwTransport::<RoleServer, _, _>::new(input, output).with_max_line_length(REQUEST_BODY_BYTES_MAX);
    let service = match tools.serve_with_ct(transport, stop).await {
        Ok(service) => service,
        // Who closes the input without a word wanted nothing.
        Err(ServerInitializeError::ConnectionClosed(_) | ServerInitializeError::Cancelled) => return Ok(()),
        Err(source) => return Err(ConverseFault::Greeting { source: Box::new(source) }),
    };
    match service.waiting().await {
        Ok(QuitReason::JoinError(fault)) | Err(fault) => tracing::error!(%fault, "the conversation ended badly"),
        Ok(_) => {}
    }
    Ok(())
}

/// The conversation did not begin.
#[derive(Debug, thiserror::Error)]
pub enum ConverseFault {
    /// The client began with something else than a greeting.
    #[error("failed to begin the conversation")]
    Greeting {
        /// What rmcp says.
        source: Box<ServerInitializeError>,
    },
}
