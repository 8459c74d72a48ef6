// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The tools behind Streamable HTTP, in both dialects: with sessions up to 2025-11-25, without from 2026-07-28 on.

use std::{sync::Arc, time::Duration};

use rmcp::{
    ServerHandler,
    transport::streamable_http_server::{
        StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
    },
};
use tokio_util::sync::CancellationToken;

use super::{progress, sessions::Sessions};

/// A 10 MiB file is 13.4 MiB in base64, and JSON adds its quotes.
pub const REQUEST_BODY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Messages that a session holds for a call whose client does not read: all of its reports, and its result. With fewer,
/// a reader that stalls would stall every other call of its session.
const CALL_MESSAGES_MAX: usize = progress::REPORTS_MAX + 8;

/// How long a session keeps the reports of a call that was cancelled, for a client that takes its answer up again.
const ANSWER_KEPT: Duration = Duration::from_secs(5);

/// Tools behind Streamable HTTP.
pub type Endpoint<H> = StreamableHttpService<H, Sessions>;

/// Whom an endpoint serves, and how much of it.
#[derive(Clone, Debug)]
pub struct EndpointRules {
    /// The names under which clients may reach the server.
    pub hosts: Vec<String>,
    /// How many sessions there can be.
    pub sessions_max: usize,
}

/// Serves tools under these rules. Cancelling `stop` ends every open answer.
#[must_use]
pub fn endpoint<H>(handler: H, rules: EndpointRules, stop: CancellationToken) -> Endpoint<H>
where
    H: ServerHandler + Clone + Sync,
{
    let EndpointRules { hosts, sessions_max } = rules;
    let mut sessions = LocalSessionManager::default();
    // A call that is silent for long would be ended with its session. Ours ends sessions that are left alone.
    sessions.session_config.keep_alive = None;
    sessions.session_config.channel_capacity = CALL_MESSAGES_MAX;
    sessions.session_config.completed_cache_ttl = ANSWER_KEPT;
    let origins = hosts.iter().flat_map(|host| origins(host)).collect::<Vec<_>>();
    // With JSON, a stateless call is answered by one document, but by a stream as soon as it reports progress.
    let config = StreamableHttpServerConfig::default()
        .with_json_response(true)
        .with_allowed_hosts(hosts)
        .with_allowed_origins(origins)
        .enforce_origin_validation()
        .with_max_request_body_bytes(REQUEST_BODY_BYTES_MAX)
        .with_cancellation_token(stop);
    StreamableHttpService::new(move || Ok(handler.clone()), Arc::new(Sessions::new(sessions, sessions_max)), config)
}

/// The pages of a host on any port, behind something that speaks TLS or not; an address of IP version 6 stands in
/// brackets.
fn origins(host: &str) -> [String; 2] {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    ["http", "https"].map(|scheme| format!("{scheme}://{host}:*"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_of_ip_version_6_stands_in_brackets() {
        assert_eq!(origins("localhost"), ["http://localhost:*", "https://localhost:*"]);
        assert_eq!(origins("::1"), ["http://[::1]:*", "https://[::1]:*"]);
    }
}
