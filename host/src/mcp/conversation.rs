// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! MCP with one client over a pair of streams, one message per line: the transport for clients that start the server.

use std::error::Error;

use rmcp::{
    ServerHandler, ServiceExt as _,
    service::{QuitReason, RoleServer, ServerInitializeError},
    transport::async_rw::AsyncRwTransport,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::{endpoint::REQUEST_BODY_BYTES_MAX, id_limit::LimitedIds, surrogates::Repaired};

/// Standard input and output of this process.
#[must_use]
pub fn standard_streams() -> (impl AsyncRead + Send + Unpin + 'static, impl AsyncWrite + Send + Unpin + 'static) {
    rmcp::transport::io::stdio_pipes()
}

/// Serves `handler` until the input ends or `stop` is cancelled. Either event cancels the running calls.
///
/// # Errors
/// [`ConverseFault`] if the client does not initialize the connection.
pub async fn converse(
    handler: impl ServerHandler,
    input: impl AsyncRead + Send + Unpin + 'static,
    output: impl AsyncWrite + Send + Unpin + 'static,
    stop: CancellationToken,
) -> Result<(), ConverseFault> {
    let transport = AsyncRwTransport::<RoleServer, _, _>::new(Repaired::new(input), output)
        .with_max_line_length(REQUEST_BODY_BYTES_MAX);
    let service = match handler.serve_with_ct(LimitedIds::new(transport), stop).await {
        Ok(service) => service,
        // A client that closes the input without a message is not an error.
        Err(ServerInitializeError::ConnectionClosed(_) | ServerInitializeError::Cancelled) => return Ok(()),
        Err(source) => return Err(ConverseFault::Initialize { source: Box::new(source) }),
    };
    match service.waiting().await {
        Ok(QuitReason::JoinError(fault)) | Err(fault) => {
            tracing::error!(error = &fault as &dyn Error, "the conversation with the client failed");
        }
        Ok(_) => {}
    }
    Ok(())
}

/// A conversation that failed to start.
#[derive(Debug, thiserror::Error)]
pub enum ConverseFault {
    /// The client's first messages were not those of `initialize`.
    #[error("failed to initialize the conversation with the client")]
    Initialize { source: Box<ServerInitializeError> },
}
