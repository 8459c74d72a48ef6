// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Reads the bodies of requests. Each body has a size limit and a timeout, and all bodies share a memory budget.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes, HttpBody as _},
    http::StatusCode,
    response::Response,
};
use futures_util::StreamExt as _;
use tokio::time::timeout;

use super::refusal::{id_too_long, refuse, too_complex};
use crate::{
    budget::{Budget, Reservation},
    domain::principal::Principal,
    error_code::ErrorCode,
    mcp::{REQUEST_BODY_BYTES_MAX, has_long_id, replace_lone_surrogates},
};

/// Memory limit of all requests in progress, in bytes: enough for fifteen requests of the maximum size and some small
/// requests.
const BUDGET_BYTES: usize = 16 * REQUEST_BODY_BYTES_MAX;

/// Timeout for reading a body, long enough for a body of the maximum size over a slow connection.
const BODY_TIME: Duration = Duration::from_secs(60);

/// Maximum time that a body waits for a reservation in the budget.
const RESERVE_TIME: Duration = Duration::from_secs(10);

/// Maximum number of bytes of a too large body that are read and discarded.
const DISCARDED_BYTES_MAX: usize = 4 * REQUEST_BODY_BYTES_MAX;

/// Maximum number of marks in one body. Marks are commas, opening brackets and opening braces outside of strings; a
/// call has a few of them per argument and variable.
const MARKS_MAX: usize = 10_000;

/// Memory of a parsed message for each mark, in bytes: an object with one entry has a mark or two, and takes 700 bytes.
const MARK_BYTES: usize = 720;

/// Each caller's own reserve: enough for a few small bodies.
const OWN_BYTES: usize = 1024 * 1024;

/// The budget and the timeouts of bodies.
#[derive(Clone, Debug)]
pub(super) struct Bodies {
    budget: Arc<Budget>,
    body_time: Duration,
    reserve_time: Duration,
}

impl Bodies {
    pub(super) fn new() -> Self {
        Self {
            budget: Arc::new(Budget::new(BUDGET_BYTES, OWN_BYTES)),
            body_time: BODY_TIME,
            reserve_time: RESERVE_TIME,
        }
    }

    /// Reads a body; returns the body with its reservation in the budget.
    ///
    /// # Errors
    /// The response to a body that is too large, too slow, too complex, or beyond the budget.
    pub(super) async fn read(&self, owner: &Principal, body: Body) -> Result<(Bytes, Reservation), Response> {
        let announced = body.size_hint().exact().map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        if announced.is_some_and(|bytes| bytes > REQUEST_BODY_BYTES_MAX) {
            let _ = timeout(self.reserve_time, discard(body)).await;
            return Err(too_large());
        }
        let bytes_max = announced.unwrap_or(REQUEST_BODY_BYTES_MAX);
        let reservation = self.budget.reserve(owner, parsed_bytes(bytes_max, bytes_max.min(MARKS_MAX)));
        let Ok(mut reservation) = timeout(self.reserve_time, reservation).await else {
            return Err(too_slow("timed out waiting for memory; too many other requests are being read"));
        };
        match timeout(self.body_time, collect(body, bytes_max)).await {
            Ok(Some(mut bytes)) => {
                let marks = marks(&bytes);
                if marks > MARKS_MAX {
                    return Err(too_complex(MARKS_MAX));
                }
                reservation.shrink(parsed_bytes(bytes.len(), marks));
                // A lone surrogate would hide an id from the check, so the body is repaired first.
                replace_lone_surrogates(&mut bytes);
                if has_long_id(&bytes) { Err(id_too_long()) } else { Ok((bytes.into(), reservation)) }
            }
            // The body is too long. Or the connection broke, and no client reads this response.
            Ok(None) => Err(too_large()),
            Err(_) => Err(too_slow("timed out reading the body")),
        }
    }
}

/// Returns the memory of a parsed message of this size. Its texts are no longer than the body.
fn parsed_bytes(body_bytes: usize, marks: usize) -> usize {
    body_bytes + marks * MARK_BYTES
}

/// Returns the number of marks in JSON; see [`MARKS_MAX`].
fn marks(json: &[u8]) -> usize {
    let (mut marks, mut in_string, mut escaped) = (0, false, false);
    for byte in json {
        match (in_string, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => in_string = !in_string,
            (false, b',' | b'[' | b'{') => marks += 1,
            (true | false, _) => {}
        }
    }
    marks
}

/// Reads a body of at most `bytes_max` bytes into one buffer, which never grows, so that the body is not copied.
async fn collect(body: Body, bytes_max: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(bytes_max);
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.ok()?;
        if piece.len() > bytes_max - bytes.len() {
            return None;
        }
        bytes.extend_from_slice(&piece);
    }
    bytes.shrink_to_fit();
    Some(bytes)
}

/// Reads and discards a body, since most clients read the response only after they have sent the whole request.
async fn discard(body: Body) {
    let mut left = DISCARDED_BYTES_MAX;
    let mut pieces = body.into_data_stream();
    while let Some(Ok(piece)) = pieces.next().await {
        let Some(rest) = left.checked_sub(piece.len()) else { return };
        left = rest;
    }
}

fn too_large() -> Response {
    let message = format!("the body must have at most {REQUEST_BODY_BYTES_MAX} bytes");
    refuse(StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::RequestTooLarge, &message)
}

fn too_slow(message: &str) -> Response {
    refuse(StatusCode::REQUEST_TIMEOUT, ErrorCode::RequestTooSlow, message)
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    fn impatient() -> Bodies {
        let soon = Duration::from_millis(50);
        Bodies { body_time: soon, reserve_time: soon, ..Bodies::new() }
    }

    fn ada() -> Principal {
        "ada".parse().unwrap()
    }

    #[tokio::test]
    async fn endless_body_times_out() {
        let bodies = impatient();
        let first = stream::once(async { Ok::<_, std::io::Error>(Bytes::from_static(b"{")) });
        let body = Body::from_stream(first.chain(stream::pending()));
        let response = bodies.read(&ada(), body).await.unwrap_err();
        assert_eq!(response.status(), StatusCode::REQUEST_TIMEOUT);
        let (read, _) = bodies.read(&ada(), Body::from(vec![b'x'; REQUEST_BODY_BYTES_MAX])).await.unwrap();
        assert_eq!(read.len(), REQUEST_BODY_BYTES_MAX);
    }

    #[tokio::test]
    async fn bodies_share_one_budget_and_one_caller_gets_at_most_half() {
        let bodies = impatient();
        let [ada, bob, eve] = ["ada", "bob", "eve"].map(|name| name.parse::<Principal>().unwrap());
        let announced = || Body::from(vec![b'x'; REQUEST_BODY_BYTES_MAX]);
        let mut held = Vec::new();
        // Each reservation is one unit larger than its body, so only seven bodies of the maximum size fit in half of
        // the budget.
        for owner in [&ada, &bob] {
            for _ in 0..7 {
                held.push(bodies.read(owner, announced()).await.unwrap());
            }
            assert_eq!(bodies.read(owner, announced()).await.unwrap_err().status(), StatusCode::REQUEST_TIMEOUT);
            assert_eq!(bodies.read(owner, Body::from("small")).await.unwrap().0, "small");
        }
        held.push(bodies.read(&eve, announced()).await.unwrap());
        assert_eq!(bodies.read(&eve, announced()).await.unwrap_err().status(), StatusCode::REQUEST_TIMEOUT);
        held.pop();
        assert_eq!(bodies.read(&eve, announced()).await.unwrap().0.len(), REQUEST_BODY_BYTES_MAX);
    }

    #[tokio::test]
    async fn body_without_a_length_reserves_its_actual_size() {
        let bodies = impatient();
        let pieces = || [Ok::<_, std::io::Error>(Bytes::from_static(b"ab")), Ok(Bytes::from_static(b"cd"))];
        let mut held = Vec::new();
        for _ in 0..20 {
            held.push(bodies.read(&ada(), Body::from_stream(stream::iter(pieces()))).await.unwrap());
        }
        assert!(held.iter().all(|(bytes, _)| bytes == "abcd"));
        let endless = Body::from_stream(stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from(vec![0; 1 << 20]))));
        assert_eq!(bodies.read(&ada(), endless).await.unwrap_err().status(), StatusCode::PAYLOAD_TOO_LARGE);
    }

    #[tokio::test]
    async fn body_with_too_many_values_is_rejected_before_parsing() {
        let bodies = Bodies::new();
        let list = |values: usize| Body::from(format!("[{}0]", "0,".repeat(values - 1)));
        assert_eq!(bodies.read(&ada(), list(MARKS_MAX)).await.unwrap().0.len(), 2 * MARKS_MAX + 1);
        assert_eq!(bodies.read(&ada(), list(MARKS_MAX + 1)).await.unwrap_err().status(), StatusCode::BAD_REQUEST);
        // Marks within a string do not count.
        let text = format!("[\"{}\"]", "[,\\\\\\\"".repeat(MARKS_MAX));
        assert_eq!(bodies.read(&ada(), Body::from(text.clone())).await.unwrap().0, text);
    }
}
