// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Responses to requests that never reach a tool. They are JSON-RPC errors, since every client of `/mcp` can parse
//! JSON-RPC errors.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use serde_json::{Value, json};

use crate::{
    error_code::ErrorCode,
    mcp::{self, SessionRefusal},
};

/// Error codes of JSON-RPC (section 5.1 of its specification). `SERVER_ERROR` is the first code of the range for
/// servers.
const PARSE_ERROR: i32 = -32700;
const INVALID_REQUEST: i32 = -32600;
const SERVER_ERROR: i32 = -32000;

/// Builds a response with a status, a code and a message.
pub(super) fn refuse(status: StatusCode, code: ErrorCode, message: &str) -> Response {
    (status, Json(error(SERVER_ERROR, code, message))).into_response()
}

/// The response to a request that a session rejected, or that could not open a session.
pub(super) fn refuse_session(refusal: SessionRefusal) -> Response {
    let message = refusal.to_string();
    let (status, number, code) = match refusal {
        SessionRefusal::Full => (StatusCode::SERVICE_UNAVAILABLE, SERVER_ERROR, ErrorCode::TooManySessions),
        SessionRefusal::Repeated => (StatusCode::BAD_REQUEST, INVALID_REQUEST, ErrorCode::RequestRepeated),
    };
    (status, Json(error(number, code, &message))).into_response()
}

/// The response to a body that is not a message, with the reason.
pub(super) fn not_a_message(body: &[u8]) -> Response {
    let (number, message) = match serde_json::from_slice::<serde::de::IgnoredAny>(body) {
        Ok(_) => (INVALID_REQUEST, "the body must be one JSON-RPC message".to_owned()),
        Err(fault) => (PARSE_ERROR, format!("invalid JSON in the body: {fault}")),
    };
    (StatusCode::BAD_REQUEST, Json(error(number, ErrorCode::NotAMessage, &message))).into_response()
}

/// Returns the response to a body with too many commas, brackets and braces.
pub(super) fn too_complex(marks_max: usize) -> Response {
    let message = format!(
        "the body must have at most {marks_max} commas, opening brackets and opening braces outside of strings"
    );
    (StatusCode::BAD_REQUEST, Json(error(INVALID_REQUEST, ErrorCode::NotAMessage, &message))).into_response()
}

/// The whole HTTP response to a connection above the limit.
pub(super) fn too_many_connections() -> String {
    let message = "too many connections; retry in a minute";
    let body = error(SERVER_ERROR, ErrorCode::TooManyConnections, message).to_string();
    format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{body}",
        body.len()
    )
}

fn error(number: i32, code: ErrorCode, message: &str) -> Value {
    json!({
        "jsonrpc": "2.0",
        "id": null,
        "error": {"code": number, "message": message, "data": mcp::error_data(code)},
    })
}
