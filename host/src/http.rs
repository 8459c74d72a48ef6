// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The HTTP server: `/mcp`, `/healthz`, `/readyz`.
//!
//! It knows how requests come in and how the server stops taking them; what they mean is the tools' matter.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State},
    http::StatusCode,
    response::IntoResponse,
    routing::get,
    serve::ListenerExt as _,
};
use serde_json::{Map, Value, json};
use tokio::{
    net::TcpListener,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::mcp;

/// Answers that are being written when the server stops get that long; a client that does not read gets no longer.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// One thing that has to be right for the server to do its work.
pub struct Check {
    /// What `/readyz` calls it.
    pub name: &'static str,
    /// Looks; the error is for the operator. It must not block for long.
    pub look: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
}

impl std::fmt::Debug for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Check").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Takes the address.
///
/// # Errors
/// [`ServeFault::Bind`], most often because another program has it.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, ServeFault> {
    TcpListener::bind(address).await.map_err(|source| ServeFault::Bind { address, source })
}

/// A server that runs.
#[derive(Debug)]
pub struct Server {
    accept: CancellationToken,
    answers: CancellationToken,
    task: JoinHandle<io::Result<()>>,
}

impl Server {
    /// Serves the tools on the listener. `answers` is the token that ends every open answer of `endpoint`.
    #[must_use]
    pub fn start(
        listener: TcpListener,
        endpoint: mcp::Endpoint,
        checks: Vec<Check>,
        answers: CancellationToken,
    ) -> Self {
        let accept = CancellationToken::new();
        // Without this, every event of a stream waits for the acknowledgement of the one before it.
        let listener = listener.tap_io(|stream| {
            if let Err(fault) = stream.set_nodelay(true) {
                tracing::debug!(%fault, "failed to set TCP_NODELAY");
            }
        });
        let stop = accept.clone();
        let task = tokio::spawn(async move {
            axum::serve(listener, router(endpoint, checks)).with_graceful_shutdown(stop.cancelled_owned()).await
        });
        Self { accept, answers, task }
    }

    /// Takes no new connections; those that are there go on.
    pub fn stop_accepting(&self) {
        self.accept.cancel();
    }

    /// Lets the answers that are ready go out, ends the streams that would stay open for ever, and returns.
    pub async fn finish(mut self) {
        self.accept.cancel();
        // A stream for notifications never ends by itself; a reply is out as soon as its client reads it.
        if timeout(LAST_ANSWERS / 2, &mut self.task).await.is_ok() {
            return;
        }
        self.answers.cancel();
        tokio::select! {
            _ = &mut self.task => {}
            () = sleep(LAST_ANSWERS / 2) => self.task.abort(),
        }
    }
}

fn router(endpoint: mcp::Endpoint, checks: Vec<Check>) -> Router {
    Router::new()
        .route("/healthz", get(async || Json(json!({"status": "ok"}))))
        .route("/readyz", get(ready))
        .with_state(Arc::new(checks))
        .route_service("/mcp", endpoint)
        .layer(DefaultBodyLimit::max(mcp::REQUEST_BODY_BYTES_MAX))
}

async fn ready(State(checks): State<Arc<Vec<Check>>>) -> impl IntoResponse {
    let outcomes: Vec<_> = checks.iter().map(|check| (check.name, (check.look)())).collect();
    let all_right = outcomes.iter().all(|(_, outcome)| outcome.is_ok());
    let shown: Map<String, Value> = outcomes
        .into_iter()
        .map(|(name, outcome)| (name.to_owned(), outcome.map_or_else(Value::from, |()| Value::from("ok"))))
        .collect();
    let (code, status) =
        if all_right { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, "unavailable") };
    (code, Json(json!({"status": status, "checks": shown})))
}

/// The server cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeFault {
    /// The address cannot be had.
    #[error("failed to listen on {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
}
