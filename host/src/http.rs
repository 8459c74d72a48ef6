// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The HTTP server: `/mcp`, `/environments/ID/log`, `/healthz`, `/readyz`.
//!
//! It knows how requests come in and how the server stops taking them; what they mean is the tools' matter.

mod answer;
mod authentication;
mod bodies;
mod connections;
mod environment_log;
mod refusal;
mod stall;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Extension, Json, Router,
    body::Body,
    extract::{Request, State},
    http::{StatusCode, header::CONTENT_TYPE},
    middleware::from_fn_with_state,
    response::{IntoResponse, Response},
    routing::{any, get},
};
use serde_json::{Map, Value, json};
use tokio::{
    net::TcpListener,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

pub use self::authentication::TokensNow;
use self::{
    answer::Holding,
    authentication::authenticate,
    bodies::Bodies,
    environment_log::{Logs, log},
    refusal::{not_a_message, refuse_session},
};
use crate::{domain::principal::Principal, mcp, service::environments::Environments, telemetry::STAGES};

/// Answers that are being written when the server stops get that long; a client that does not read gets no longer.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// The type of every body that a client sends.
const JSON: &[u8] = b"application/json";

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
/// [`BindFault`], most often because another program has it.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, BindFault> {
    TcpListener::bind(address).await.map_err(|source| BindFault { address, source })
}

/// A server that runs.
#[derive(Debug)]
pub struct Server {
    accept: CancellationToken,
    answers: CancellationToken,
    task: JoinHandle<()>,
}

/// Whom a server lets in.
#[derive(Debug)]
pub struct Entrance {
    /// Who may call the tools.
    pub tokens: TokensNow,
    /// How many connections there can be at once.
    pub connections_max: usize,
    /// The names under which the server is reached.
    pub hosts: Vec<String>,
}

impl Server {
    /// Serves the tools, and what happened to the environments, on the listener. `answers` is the token that ends every
    /// open answer of `endpoint`.
    #[must_use]
    pub fn start<H: mcp::ServerHandler>(
        listener: TcpListener,
        endpoint: mcp::Endpoint<H>,
        environments: Arc<Environments>,
        entrance: Entrance,
        checks: Vec<Check>,
        answers: CancellationToken,
    ) -> Self {
        let accept = CancellationToken::new();
        let logs = Logs { environments, hosts: entrance.hosts };
        let router = router(endpoint, logs, entrance.tokens, checks);
        let task = tokio::spawn(connections::serve(listener, router, entrance.connections_max, accept.clone()));
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

fn router<H: mcp::ServerHandler>(
    endpoint: mcp::Endpoint<H>,
    logs: Logs,
    tokens: TokensNow,
    checks: Vec<Check>,
) -> Router {
    let tools = Router::new()
        .route("/mcp", any(request::<H>))
        .with_state((endpoint, Bodies::new()))
        .merge(Router::new().route("/environments/{id}/log", get(log)).with_state(Arc::new(logs)))
        .layer(from_fn_with_state(tokens, authenticate));
    Router::new()
        .route("/healthz", get(async || Json(json!({"status": "ok"}))))
        .route("/readyz", get(ready))
        .with_state(Arc::new(checks))
        .merge(tools)
}

async fn request<H: mcp::ServerHandler>(
    state: State<(mcp::Endpoint<H>, Bodies)>,
    principal: Extension<Principal>,
    request: Request,
) -> Response {
    let whole = tracing::debug_span!(target: STAGES, "request");
    answer(state, principal, request).instrument(whole).await
}

async fn answer<H: mcp::ServerHandler>(
    State((endpoint, bodies)): State<(mcp::Endpoint<H>, Bodies)>,
    Extension(principal): Extension<Principal>,
    request: Request,
) -> Response {
    let (mut parts, body) = request.into_parts();
    let reading = tracing::debug_span!(target: STAGES, "body");
    let (body, room) = match bodies.read(&principal, body).instrument(reading).await {
        Ok(read) => read,
        Err(refusal) => return refusal,
    };
    let kept = mcp::RequestMemory::default();
    kept.hold_body(room);
    parts.extensions.insert(kept.clone());
    let is_json = parts.headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(JSON));
    let request = Request::from_parts(parts, Body::from(body.clone()));
    match mcp::on_behalf(principal, kept.clone(), endpoint.handle(request)).await {
        // This is how rmcp answers JSON that is no message, too.
        Ok(answer) if is_json && answer.status() == StatusCode::UNSUPPORTED_MEDIA_TYPE => not_a_message(&body),
        Ok(answer) => answer.map(|answer| Body::new(Holding::new(Body::new(answer), kept))),
        Err(refusal) => refuse_session(refusal),
    }
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

/// The address cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("failed to listen on {address}{}", another(source))]
pub struct BindFault {
    /// The address.
    pub address: SocketAddr,
    /// What the system says.
    pub source: io::Error,
}

/// What to do about an address that cannot be had.
fn another(fault: &io::Error) -> &'static str {
    let kind = fault.kind();
    if kind == io::ErrorKind::AddrInUse {
        "; another program has it, perhaps a waggle that runs already; --listen-addr or WAGGLE_LISTEN_ADDR takes another"
    } else if kind == io::ErrorKind::PermissionDenied {
        "; ports below 1024 are the system's; --listen-addr or WAGGLE_LISTEN_ADDR takes another, such as 127.0.0.1:8080"
    } else if kind == io::ErrorKind::AddrNotAvailable {
        "; this machine has no such address; --listen-addr or WAGGLE_LISTEN_ADDR takes another, such as 127.0.0.1:8080"
    } else {
        ""
    }
}
