// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! `GET /environments/ID/log`: the events of an environment and the end of its machine's console, for its owner.
//!
//! The log is not a tool, since it is for people (`waggle logs`) and not for models. Requests from web pages are
//! rejected: requests with an Origin, and requests to a host name that is not the server's (DNS rebinding).

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::{Path, State},
    http::{
        HeaderMap, StatusCode, Uri,
        header::{HOST, ORIGIN},
        uri::Authority,
    },
    response::{IntoResponse as _, Response},
};
use serde_json::{Value, json};

use super::refusal::refuse;
use crate::{
    domain::{environment_id::EnvironmentId, principal::Principal},
    error_code::ErrorCode,
    mcp::rfc3339,
    service::{
        environments::Environments,
        fault::{ArgumentFault, CallerFault},
        journal::EnvironmentLog,
    },
};

/// The environments, and the host names by which clients may address the server.
#[derive(Debug)]
pub(super) struct Logs {
    pub(super) environments: Arc<Environments>,
    pub(super) hosts: Vec<String>,
}

/// Responds with the log, or with an error.
pub(super) async fn log(
    State(logs): State<Arc<Logs>>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    if headers.contains_key(ORIGIN) || !names_allowed_host(&uri, &headers, &logs.hosts) {
        let message = "a request for a log must name an allowed host and have no Origin header";
        return refuse(StatusCode::FORBIDDEN, ErrorCode::Forbidden, message);
    }
    let found = match id.parse::<EnvironmentId>() {
        Ok(id) => logs.environments.log(&principal, id),
        Err(fault) => Err(CallerFault::Argument(ArgumentFault::Id(fault))),
    };
    match found {
        Ok(log) => Json(json_of(&log)).into_response(),
        Err(fault) => refused(&fault),
    }
}

fn json_of(log: &EnvironmentLog) -> Value {
    let EnvironmentLog { environment, events, console, refused, refused_last } = log;
    let events: Vec<_> = events.iter().map(|event| json!({"at": rfc3339(event.at), "what": event.what})).collect();
    json!({
        "environment_id": environment.id.to_string(),
        "name": environment.name.as_str(),
        "runtime": environment.runtime.name(),
        "image": environment.image.short_name(),
        "status": environment.state().name(),
        "created_at": rfc3339(environment.created_at),
        "events": events,
        "egress_refused": refused,
        "egress_refused_last": refused_last.as_ref().map(ToString::to_string),
        "console": console,
    })
}

fn refused(fault: &CallerFault) -> Response {
    let code = fault.code();
    let status = if code == ErrorCode::EnvironmentNotFound {
        StatusCode::NOT_FOUND
    } else if code == ErrorCode::EnvironmentDestroyed {
        StatusCode::GONE
    } else {
        StatusCode::BAD_REQUEST
    };
    let error = json!({"code": code.as_str(), "message": fault.to_string(), "hint": code.hint()});
    (status, Json(json!({"error": error}))).into_response()
}

/// Whether the request names one of `hosts`. Each entry is a name, or a name with a port, as for `/mcp`.
fn names_allowed_host(uri: &Uri, headers: &HeaderMap, hosts: &[String]) -> bool {
    let named = headers.get(HOST).and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
    let Some(authority) = uri.authority().cloned().or(named) else { return false };
    let bare = authority.host().trim_start_matches('[').trim_end_matches(']');
    hosts.iter().any(|host| host.eq_ignore_ascii_case(bare) || host.eq_ignore_ascii_case(authority.as_str()))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn only_allowed_hosts_are_accepted() {
        let hosts = ["localhost", "::1", "waggle.example:8443"].map(str::to_owned);
        let accepted = |host: &'static str| {
            let headers = HeaderMap::from_iter([(HOST, HeaderValue::from_static(host))]);
            names_allowed_host(&Uri::from_static("/"), &headers, &hosts)
        };
        for host in ["localhost", "LocalHost:8080", "[::1]:8080", "[::1]", "waggle.example:8443"] {
            assert!(accepted(host), "{host}");
        }
        for host in ["", "evil.example", "localhost.evil.example", "waggle.example", "waggle.example:80", "a b"] {
            assert!(!accepted(host), "{host}");
        }
        assert!(!names_allowed_host(&Uri::from_static("/"), &HeaderMap::new(), &hosts));
    }
}
