// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The HTTP server: `/mcp`, `/environments/ID/log`, `/healthz`, `/readyz`.
//!
//! The server accepts connections, authenticates requests, limits their resources, and shuts down. The tools are in
//! `mcp`.

mod answer;
mod authentication;
mod bodies;
mod connections;
mod cors;
mod environment_log;
mod keep_alive;
mod linger;
mod negotiation;
mod places;
mod readiness;
mod refusal;
mod stall;
mod tls;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Extension, Json, Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{Method, StatusCode, header::CONTENT_TYPE, request::Parts},
    middleware::from_fn_with_state,
    response::Response,
    routing::{any, get},
};
use futures_util::FutureExt as _;
use serde_json::json;
use tokio::{
    net::TcpListener,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use self::{
    answer::HoldingBody,
    authentication::authenticate,
    bodies::Bodies,
    environment_log::{Logs, log},
    keep_alive::kept_alive,
    negotiation::{Accepted, into_document, take_accepted},
    readiness::{Readiness, ready},
    refusal::{method_not_allowed, not_a_message, not_acceptable, refuse_session, unknown_path, with_code},
};
pub use self::{authentication::CurrentTokens, readiness::Check, tls::CurrentTls};
use crate::{
    domain::{origin::Origin, principal::Principal},
    mcp,
    service::environments::Environments,
    telemetry::STAGES,
};

/// Timeout for responses in progress at a shutdown. A client that does not read must not delay the shutdown longer.
const LAST_RESPONSES_MAX: Duration = Duration::from_secs(2);

const JSON: &[u8] = b"application/json";

/// Binds a listener.
///
/// # Errors
/// [`BindFault`], most often because another program uses the address.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, BindFault> {
    TcpListener::bind(address).await.map_err(|source| BindFault { address, source })
}

/// A running HTTP server.
#[derive(Debug)]
pub struct Server {
    accept: CancellationToken,
    responses: CancellationToken,
    task: JoinHandle<()>,
}

/// The rules for access to a server.
#[derive(Debug)]
pub struct Entrance {
    pub tokens: CurrentTokens,
    pub tls: CurrentTls,
    /// Maximum number of concurrent connections.
    pub connections_max: usize,
    /// The host names by which clients may address the server.
    pub hosts: Vec<String>,
    /// The origins whose web pages may call the server.
    pub cors_origins: Vec<Origin>,
}

impl Server {
    /// Serves the tools and the logs of the environments on the listener. Cancelling `responses` ends each open
    /// response of `endpoint`.
    #[must_use]
    pub fn start<H: mcp::ServerHandler>(
        listener: TcpListener,
        endpoint: mcp::Endpoint<H>,
        environments: Arc<Environments>,
        entrance: Entrance,
        checks: Vec<Check>,
        responses: CancellationToken,
    ) -> Self {
        let accept = CancellationToken::new();
        let logs = Logs { environments, hosts: entrance.hosts };
        let router = cors::allow(router(endpoint, logs, entrance.tokens, checks), &entrance.cors_origins);
        let served = connections::serve(listener, entrance.tls, router, entrance.connections_max, accept.clone());
        let task = tokio::spawn(served);
        Self { accept, responses, task }
    }

    /// Accepts no further connections; the open ones continue.
    pub fn stop_accepting(&self) {
        self.accept.cancel();
    }

    /// Waits for the responses in progress, and ends the streams that never end by themselves.
    pub async fn finish(mut self) {
        self.accept.cancel();
        // A stream of notifications never ends by itself. A response ends as soon as the client has read it.
        if timeout(LAST_RESPONSES_MAX / 2, &mut self.task).await.is_ok() {
            return;
        }
        self.responses.cancel();
        tokio::select! {
            _ = &mut self.task => {}
            () = sleep(LAST_RESPONSES_MAX / 2) => self.task.abort(),
        }
    }
}

fn router<H: mcp::ServerHandler>(
    endpoint: mcp::Endpoint<H>,
    logs: Logs,
    tokens: CurrentTokens,
    checks: Vec<Check>,
) -> Router {
    let tools = Router::new()
        .route("/mcp", any(request::<H>))
        .route("/mcp/", any(request::<H>))
        .with_state((endpoint, Bodies::new()))
        .merge(Router::new().route("/environments/{id}/log", get(log)).with_state(Arc::new(logs)))
        .layer(from_fn_with_state(tokens, authenticate));
    Router::new()
        .route("/healthz", get(async || Json(json!({"status": "ok"}))))
        .route("/readyz", get(ready))
        .with_state(Arc::new(Readiness::new(checks)))
        .merge(tools)
        .fallback(async || unknown_path())
        .method_not_allowed_fallback(async || method_not_allowed())
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
    let accepted = take_accepted(&mut parts.headers);
    if parts.method == Method::GET && !accepted.any {
        return not_acceptable();
    }
    let reading = tracing::debug_span!(target: STAGES, "body");
    let (body, reservation) = match bodies.read(&principal, body).instrument(reading).await {
        Ok(read) => read,
        Err(refusal) => return refusal,
    };
    let memory = mcp::RequestMemory::default();
    memory.hold_body(reservation);
    parts.extensions.insert(memory.clone());
    let answer = answer_message(endpoint, principal, memory, accepted, parts, body);
    kept_alive(answer.boxed()).await
}

async fn answer_message<H: mcp::ServerHandler>(
    endpoint: mcp::Endpoint<H>,
    principal: Principal,
    memory: mcp::RequestMemory,
    accepted: Accepted,
    parts: Parts,
    body: Bytes,
) -> Response {
    let method = parts.method.clone();
    let is_json = parts.headers.get(CONTENT_TYPE).is_some_and(|kind| {
        let essence = kind.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
        essence.trim_ascii().eq_ignore_ascii_case(JSON)
    });
    // The body is not kept during the call, so that only its parsed form needs memory.
    let syntax_fault = serde_json::from_slice::<serde::de::IgnoredAny>(&body).err().map(|fault| fault.to_string());
    let request = Request::from_parts(parts, Body::from(body));
    match mcp::on_behalf(principal, memory.clone(), endpoint.handle(request)).await {
        // rmcp also responds with this status to JSON that is not a message.
        Ok(answer) if is_json && answer.status() == StatusCode::UNSUPPORTED_MEDIA_TYPE => not_a_message(syntax_fault),
        Ok(answer) => {
            let mut answer = with_code(answer.map(Body::new)).await;
            if method == Method::POST && !accepted.event_stream {
                answer = into_document(answer).await;
            }
            if method == Method::DELETE && answer.status() == StatusCode::ACCEPTED {
                // The Python client reports any other status of a success as a failure.
                *answer.status_mut() = StatusCode::NO_CONTENT;
            }
            answer.map(|answer| Body::new(HoldingBody::new(answer, memory)))
        }
        Err(refusal) => refuse_session(refusal),
    }
}

/// A listener could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("failed to listen on {address}{}", remedy(source))]
pub struct BindFault {
    pub address: SocketAddr,
    pub source: io::Error,
}

/// Returns the cause of a bind error and the remedy, or an empty text if another address would not help.
fn remedy(fault: &io::Error) -> &'static str {
    let kind = fault.kind();
    if kind == io::ErrorKind::AddrInUse {
        "; another program uses this address, perhaps waggle; set another one with --listen-addr or WAGGLE_LISTEN_ADDR"
    } else if kind == io::ErrorKind::PermissionDenied {
        "; ports below 1024 are reserved; set another one with --listen-addr or WAGGLE_LISTEN_ADDR"
    } else if kind == io::ErrorKind::AddrNotAvailable {
        "; this machine does not have this address; set another one with --listen-addr or WAGGLE_LISTEN_ADDR"
    } else {
        ""
    }
}
