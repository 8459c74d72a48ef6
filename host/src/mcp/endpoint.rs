// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! MCP over Streamable HTTP. Protocol versions up to 2025-11-25 have sessions; versions from 2026-07-28 on are
//! stateless.

use std::{sync::Arc, time::Duration};

use rmcp::{
    ServerHandler,
    transport::streamable_http_server::{
        StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
    },
};
use tokio_util::sync::CancellationToken;

use super::{progress, sessions::Sessions};
use crate::{domain::shared_limit::SharedLimit, service::callers::Callers};

/// Maximum size of a request body in bytes. A file of 10 MiB is 13.3 MiB in base64, and JSON adds a little.
pub const REQUEST_BODY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Maximum number of messages that a session buffers for one call: all its reports and the result. With a smaller
/// buffer, a client that stops reading one answer would block all other calls of the session.
const CALL_MESSAGES_MAX: usize = progress::REPORTS_MAX + 8;

/// A handler behind Streamable HTTP.
pub type Endpoint<H> = StreamableHttpService<H, Sessions>;

/// The access rules of an endpoint.
#[derive(Clone, Debug)]
pub struct EndpointRules {
    /// Host names by which clients may address the server.
    pub hosts: Vec<String>,
    /// Other origins whose web pages may call the server.
    pub origins: Vec<String>,
    /// The limit on open sessions.
    pub sessions: SharedLimit,
    pub callers: Callers,
}

/// Serves `handler` under these rules. Cancelling `stop` ends every open answer.
#[must_use]
pub fn endpoint<H>(handler: H, rules: EndpointRules, stop: CancellationToken) -> Endpoint<H>
where
    H: ServerHandler + Clone + Sync,
{
    let EndpointRules { hosts, origins: others, sessions: limit, callers } = rules;
    let mut sessions = LocalSessionManager::default();
    // rmcp would close a session during a long silent call. `Sessions` closes idle sessions instead.
    sessions.session_config.keep_alive = None;
    sessions.session_config.channel_capacity = CALL_MESSAGES_MAX;
    // `Sessions` sends the first events and keeps the answers for clients that return, so rmcp does neither.
    sessions.session_config.sse_retry = None;
    sessions.session_config.completed_cache_ttl = Duration::ZERO;
    let origins = hosts.iter().flat_map(|host| origins(host)).chain(others).collect::<Vec<_>>();
    // The answer to a stateless call is one JSON document, or a stream if the call reports progress.
    let config = StreamableHttpServerConfig::default()
        .with_json_response(true)
        .with_sse_retry(None)
        .with_allowed_hosts(hosts)
        .with_allowed_origins(origins)
        .enforce_origin_validation()
        .with_max_request_body_bytes(REQUEST_BODY_BYTES_MAX)
        .with_cancellation_token(stop);
    let sessions = Arc::new(Sessions::new(sessions, limit, callers));
    StreamableHttpService::new(move || Ok(handler.clone()), sessions, config)
}

/// Returns the allowed origins of a host: with and without TLS, on any port. An IPv6 address is put in brackets.
fn origins(host: &str) -> [String; 2] {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    ["http", "https"].map(|scheme| format!("{scheme}://{host}:*"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn puts_ipv6_origins_in_brackets() {
        assert_eq!(origins("localhost"), ["http://localhost:*", "https://localhost:*"]);
        assert_eq!(origins("::1"), ["http://[::1]:*", "https://[::1]:*"]);
    }
}
