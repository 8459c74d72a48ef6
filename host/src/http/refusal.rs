// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Responses to requests that never reach a tool. They are JSON-RPC errors, since every client of `/mcp` can parse
//! JSON-RPC errors.

use axum::{
    Json,
    body::to_bytes,
    http::{
        StatusCode,
        header::{CONTENT_LENGTH, CONTENT_TYPE},
    },
    response::{IntoResponse as _, Response},
};
use serde_json::{Value, json};

use super::places::FIRST_HEAD_TIME;
use crate::{
    error_code::ErrorCode,
    mcp::{self, SessionRefusal},
};

/// Error codes of JSON-RPC (section 5.1 of its specification). `SERVER_ERROR` is the first code of the range for
/// servers.
const PARSE_ERROR: i32 = -32700;
const INVALID_REQUEST: i32 = -32600;
const SERVER_ERROR: i32 = -32000;

/// Maximum size of a text with which rmcp refuses a request. The longest has about a hundred bytes.
const REASON_BYTES_MAX: usize = 4096;

const TOO_MANY_CONNECTIONS: &str = "too many connections; retry in a minute";

/// Builds a response with a status, a code and a message.
pub(super) fn refuse(status: StatusCode, code: ErrorCode, message: &str) -> Response {
    (status, Json(error(SERVER_ERROR, code, message))).into_response()
}

/// The response to a request that a session rejected, or that could not open a session.
pub(super) fn refuse_session(refusal: SessionRefusal) -> Response {
    let message = refusal.to_string();
    let (status, number, code) = match refusal {
        SessionRefusal::Full => (StatusCode::SERVICE_UNAVAILABLE, SERVER_ERROR, ErrorCode::TooManySessions),
        SessionRefusal::Share { .. } => {
            (StatusCode::SERVICE_UNAVAILABLE, SERVER_ERROR, ErrorCode::TooManyCallerSessions)
        }
        SessionRefusal::Repeated => (StatusCode::BAD_REQUEST, INVALID_REQUEST, ErrorCode::RequestRepeated),
    };
    (status, Json(error(number, code, &message))).into_response()
}

/// The response to a request for a path that this server does not have.
pub(super) fn unknown_path() -> Response {
    refuse(StatusCode::NOT_FOUND, ErrorCode::UnknownPath, "unknown path; the MCP endpoint is /mcp")
}

/// The response to a method that a path does not take.
pub(super) fn method_not_allowed() -> Response {
    refuse(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::MethodNotAllowed, "this path does not take this method")
}

/// The response to a GET of a client that takes no event stream.
pub(super) fn not_acceptable() -> Response {
    let message =
        "a GET of the MCP endpoint opens an event stream, which this client does not accept; send calls by POST";
    refuse(StatusCode::NOT_ACCEPTABLE, ErrorCode::NotAcceptable, message)
}

/// Adds a code to the responses with which rmcp refuses requests. They are plain texts, or JSON-RPC errors without a
/// code.
pub(super) async fn with_code(response: Response) -> Response {
    let status = response.status();
    let is_json =
        response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    if !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let code = match status {
        StatusCode::NOT_FOUND => ErrorCode::UnknownSession,
        StatusCode::FORBIDDEN => ErrorCode::Forbidden,
        StatusCode::METHOD_NOT_ALLOWED => ErrorCode::MethodNotAllowed,
        StatusCode::UNSUPPORTED_MEDIA_TYPE => ErrorCode::UnsupportedMediaType,
        status if status.is_server_error() => ErrorCode::Internal,
        _ => ErrorCode::BadRequest,
    };
    let (mut parts, body) = response.into_parts();
    let text = to_bytes(body, REASON_BYTES_MAX).await.unwrap_or_default();
    let json = match serde_json::from_slice::<Value>(&text) {
        Ok(mut error) if is_json => {
            // A JSON-RPC error with status 404 is about an unknown method.
            if status != StatusCode::NOT_FOUND
                && let Some(error) = error.get_mut("error").and_then(Value::as_object_mut)
            {
                error.entry("data").or_insert_with(|| mcp::error_data(code));
            }
            (status, Json(error)).into_response()
        }
        // Some clients open another session only after this code and this message.
        _ if code == ErrorCode::UnknownSession => {
            (status, Json(error(INVALID_REQUEST, code, "Session terminated"))).into_response()
        }
        _ => refuse(status, code, &String::from_utf8_lossy(&text)),
    };
    parts.headers.remove(CONTENT_LENGTH);
    parts.headers.extend(json.headers().clone());
    Response::from_parts(parts, json.into_body())
}

/// The response to a body that is not a message. `syntax_fault` says why the body is not even JSON.
pub(super) fn not_a_message(syntax_fault: Option<String>) -> Response {
    let (number, message) = match syntax_fault {
        None => (INVALID_REQUEST, "the body must be one JSON-RPC message".to_owned()),
        Some(fault) => (PARSE_ERROR, format!("invalid JSON in the body: {fault}")),
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

/// Returns the response to a body with an id above the limit.
pub(super) fn id_too_long() -> Response {
    let error = error(INVALID_REQUEST, ErrorCode::IdTooLong, &mcp::long_id_message());
    (StatusCode::BAD_REQUEST, Json(error)).into_response()
}

/// The response to a request of a connection that has lost its place.
pub(super) fn connection_evicted() -> Response {
    refuse(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::TooManyConnections, TOO_MANY_CONNECTIONS)
}

/// The whole HTTP response to a connection above the limit.
pub(super) fn too_many_connections() -> String {
    whole("503 Service Unavailable", ErrorCode::TooManyConnections, TOO_MANY_CONNECTIONS)
}

/// The whole HTTP response to a connection whose first request does not arrive.
pub(super) fn head_too_slow() -> String {
    let message = format!(
        "timed out waiting for the head of the request; it must arrive within {} s of the connection",
        FIRST_HEAD_TIME.as_secs()
    );
    whole("408 Request Timeout", ErrorCode::RequestTooSlow, &message)
}

/// The whole HTTP response to a request in plain text, on a server with TLS.
pub(super) fn https_required() -> String {
    whole("400 Bad Request", ErrorCode::BadRequest, "this server speaks HTTPS; use a URL that begins with https://")
}

/// Writes a whole HTTP response, after which the connection closes.
fn whole(status: &str, code: ErrorCode, message: &str) -> String {
    let body = error(SERVER_ERROR, code, message).to_string();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
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
