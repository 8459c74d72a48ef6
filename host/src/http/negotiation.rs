// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Serves clients whatever media types they accept.
//!
//! MCP wants clients to accept both JSON and event streams. rmcp refuses all others, but programs without an MCP
//! library often send `*/*`, JSON alone, or nothing. A client that does not name event streams gets one JSON document.

use axum::{
    body::Body,
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{ACCEPT, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE},
    },
    response::Response,
};
use futures_util::StreamExt as _;
use serde::{Deserialize, de::IgnoredAny};
use sse_stream::SseStream;

use super::refusal::refuse;
use crate::error_code::ErrorCode;

const EVENT_STREAM: &str = "text/event-stream";

/// The media types that rmcp requires a client to accept.
const BOTH: HeaderValue = HeaderValue::from_static("application/json, text/event-stream");

/// The media types that a client accepts, as far as they matter here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Accepted {
    /// Whether the client names event streams.
    pub(super) event_stream: bool,
    /// Whether the client accepts event streams, perhaps without naming them.
    pub(super) any: bool,
}

/// Reads the header `Accept`, and replaces it with one that rmcp takes.
pub(super) fn take_accepted(headers: &mut HeaderMap) -> Accepted {
    let accepted = accepted(headers);
    headers.insert(ACCEPT, BOTH);
    accepted
}

fn accepted(headers: &HeaderMap) -> Accepted {
    let mut ranges = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).peekable();
    let none = ranges.peek().is_none();
    let ranges: Vec<_> = ranges.flat_map(|value| value.split(',')).filter_map(media_range).collect();
    let has = |wanted: &str| ranges.iter().any(|range| range.eq_ignore_ascii_case(wanted));
    let event_stream = has(EVENT_STREAM);
    Accepted { event_stream, any: none || event_stream || has("*/*") || has("text/*") }
}

/// Returns the media range without its parameters, or `None` if its weight is zero (RFC 9110, section 12.4.2).
fn media_range(text: &str) -> Option<&str> {
    let (range, parameters) = text.split_once(';').unwrap_or((text, ""));
    let weight = parameters.split(';').find_map(|parameter| parameter.trim().strip_prefix("q="));
    let excluded = weight.and_then(|weight| weight.trim().parse::<f64>().ok()) == Some(0.0);
    (!excluded).then(|| range.trim())
}

/// Converts an event stream into a JSON document with the answer. Reports are left out.
pub(super) async fn into_document(response: Response) -> Response {
    let is_stream =
        response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(EVENT_STREAM.as_bytes()));
    if !is_stream {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let mut events = SseStream::new(body);
    let mut answer = None;
    while let Some(Ok(event)) = events.next().await {
        answer = event.data.filter(|data| is_answer(data)).or(answer);
    }
    let Some(answer) = answer else {
        return refuse(
            StatusCode::OK,
            ErrorCode::Cancelled,
            "the request was cancelled, or the server is shutting down",
        );
    };
    parts.headers.remove(CACHE_CONTROL);
    parts.headers.remove(CONTENT_LENGTH);
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Response::from_parts(parts, Body::from(answer))
}

/// Whether a message is a response, and not a report or a request of the server.
fn is_answer(message: &str) -> bool {
    #[derive(Deserialize)]
    struct Message {
        result: Option<IgnoredAny>,
        error: Option<IgnoredAny>,
    }
    serde_json::from_str::<Message>(message).is_ok_and(|message| message.result.is_some() || message.error.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_out_whether_a_client_names_or_accepts_event_streams() {
        for (values, event_stream, any) in [
            (&["application/json, text/event-stream"][..], true, true),
            (&["application/json", "Text/Event-Stream; q=0.5"], true, true),
            (&["*/*"], false, true),
            (&[], false, true),
            (&["application/json"], false, false),
            (&["application/json, text/event-stream;q=0"], false, false),
            (&["text/html"], false, false),
        ] {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(ACCEPT, HeaderValue::from_static(value));
            }
            assert_eq!(take_accepted(&mut headers), Accepted { event_stream, any }, "{values:?}");
            assert_eq!(headers.get_all(ACCEPT).iter().collect::<Vec<_>>(), [BOTH]);
        }
    }
}
