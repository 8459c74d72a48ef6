// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Answers for requests that never reach a tool: JSON-RPC errors, since that is what every client of `/mcp` can read.

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

/// JSON-RPC's own codes (section 5.1 of its specification), and the first of those that are a server's to give.
const PARSE_ERROR: i32 = -32700;
const INVALID_REQUEST: i32 = -32600;
const SERVER_ERROR: i32 = -32000;

/// An answer with a status, a code and a sentence.
pub(super) fn refuse(status: StatusCode, code: ErrorCode, message: &str) -> Response {
    (status, Json(error(SERVER_ERROR, code, message))).into_response()
}

/// An answer to what a session can't take, or to what would have begun one.
pub(super) fn refuse_session(refusal: SessionRefusal) -> Response {
    let message = refusal.to_string();
    let (status, number, code) = match refusal {
        SessionRefusal::Full => (StatusCode::SERVICE_UNAVAILABLE, SERVER_ERROR, ErrorCode::TooManySessions),
        SessionRefusal::Repeated => (StatusCode::BAD_REQUEST, INVALID_REQUEST, ErrorCode::RequestRepeated),
    };
    (status, Json(error(number, code, &message))).into_response()
}

/// An answer to a body that is no message, which says as much as can be said of why.
pub(super) fn not_a_message(body: &[u8]) -> Response {
    let (number, message) = match serde_json::from_slice::<serde::de::IgnoredAny>(body) {
        Ok(_) => (INVALID_REQUEST, "the body is not one JSON-RPC message".to_owned()),
        Err(fault) => (PARSE_ERROR, format!("the body is not JSON: {fault}")),
    };
    (StatusCode::BAD_REQUEST, Json(error(number, ErrorCode::NotAMessage, &message))).into_response()
}

/// An answer to a message that has more parts than any needs.
pub(super) fn too_intricate(marks_max: usize) -> Response {
    let message = format!("the body has more than {marks_max} commas, brackets and braces outside of strings");
    (StatusCode::BAD_REQUEST, Json(error(INVALID_REQUEST, ErrorCode::NotAMessage, &message))).into_response()
}

/// What is sent in place of an answer if there is no room for the connection.
pub(super) fn no_room() -> String {
    let message = "there are as many connections as this server takes; try again in a minute";
    let body = error(SERVER_ERROR, ErrorCode::TooManyConnections, message).to_string();
    format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\
         \r\n{body}",
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
