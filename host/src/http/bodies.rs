// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Reads the bodies of requests. Each body has a size limit and a timeout, and all bodies share a memory budget.

use std::{pin::pin, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes, HttpBody as _},
    http::StatusCode,
    response::Response,
};
use futures_util::{Stream, StreamExt as _, stream};
use tokio::time::{Instant, timeout, timeout_at};

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

/// Number of marks whose memory is reserved with that of a body's bytes, before the body is read. Few calls have more,
/// and only those wait a second time.
const MARKS_USUAL: usize = 64;

/// Size up to which a body of unknown length is read before it reserves memory for the maximum size, in bytes.
const UNANNOUNCED_BYTES: usize = 64 * 1024;

/// Each caller's own reserve: enough for a few bodies of at most 64 KiB with the usual number of marks.
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
        let mut pieces = body.into_data_stream();
        let mut bytes = Vec::new();
        let mut reservation = self.reserve(owner, first_bytes(announced.unwrap_or(UNANNOUNCED_BYTES))).await?;
        let until = Instant::now() + self.body_time;
        let mut rest = collect_until(until, &mut pieces, &mut bytes, announced.unwrap_or(UNANNOUNCED_BYTES)).await?;
        if announced.is_none() && rest.is_some() {
            self.grow(&mut reservation, first_bytes(REQUEST_BODY_BYTES_MAX)).await?;
            let pieces = stream::iter(rest.map(Ok)).chain(pieces);
            rest = collect_until(until, pin!(pieces), &mut bytes, REQUEST_BODY_BYTES_MAX).await?;
        }
        if rest.is_some() {
            return Err(too_large());
        }
        let marks = marks(&bytes);
        if marks > MARKS_MAX {
            return Err(too_complex(MARKS_MAX));
        }
        bytes.shrink_to_fit();
        reservation.shrink(parsed_bytes(bytes.len(), marks));
        self.grow(&mut reservation, parsed_bytes(bytes.len(), marks)).await?;
        // A lone surrogate would hide an id from the check, so the body is repaired first.
        replace_lone_surrogates(&mut bytes);
        if has_long_id(&bytes) { Err(id_too_long()) } else { Ok((bytes.into(), reservation)) }
    }

    async fn reserve(&self, owner: &Principal, bytes: usize) -> Result<Reservation, Response> {
        timeout(self.reserve_time, self.budget.reserve(owner, bytes)).await.map_err(|_elapsed| no_memory())
    }

    async fn grow(&self, reservation: &mut Reservation, bytes: usize) -> Result<(), Response> {
        timeout(self.reserve_time, self.budget.grow(reservation, bytes)).await.map_err(|_elapsed| no_memory())
    }
}

/// Returns the memory that is reserved before a body of at most this size is read.
fn first_bytes(bytes_max: usize) -> usize {
    parsed_bytes(bytes_max, bytes_max.min(MARKS_USUAL))
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

/// Reads like [`collect`], until this time at most.
async fn collect_until(
    until: Instant,
    pieces: impl Stream<Item = Result<Bytes, axum::Error>> + Unpin,
    bytes: &mut Vec<u8>,
    bytes_max: usize,
) -> Result<Option<Bytes>, Response> {
    match timeout_at(until, collect(pieces, bytes, bytes_max)).await {
        Ok(Ok(rest)) => Ok(rest),
        // The connection broke, so no client reads this response.
        Ok(Err(_broken)) => Err(too_large()),
        Err(_elapsed) => Err(too_slow("timed out reading the body")),
    }
}

/// Reads pieces into a buffer of at most `bytes_max` bytes, which grows only once, so that the body is not copied
/// again and again. Returns the piece that did not fit.
async fn collect(
    mut pieces: impl Stream<Item = Result<Bytes, axum::Error>> + Unpin,
    bytes: &mut Vec<u8>,
    bytes_max: usize,
) -> Result<Option<Bytes>, axum::Error> {
    bytes.reserve_exact(bytes_max.saturating_sub(bytes.len()));
    while let Some(piece) = pieces.next().await.transpose()? {
        if piece.len() > bytes_max - bytes.len() {
            return Ok(Some(piece));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(None)
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

fn no_memory() -> Response {
    too_slow("timed out waiting for memory; too many other requests are being read")
}

fn too_slow(message: &str) -> Response {
    refuse(StatusCode::REQUEST_TIMEOUT, ErrorCode::RequestTooSlow, message)
}

#[cfg(test)]
mod tests {
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
    async fn usual_bodies_fit_the_callers_own_reserve_when_the_budget_is_full() {
        let bodies = impatient();
        let [ada, bob, eve] = ["ada", "bob", "eve"].map(|name| name.parse::<Principal>().unwrap());
        let call = |code: usize| {
            let arguments = "\"a\":[\"b\",{\"c\":0}],".repeat(16);
            format!("{{\"params\":{{{arguments}\"code\":\"{}\"}}}}", "x".repeat(code))
        };
        // Both callers have used up all memory, also that of their own.
        let mut held = Vec::new();
        for owner in [&ada, &bob] {
            held.push(bodies.budget.reserve(owner, BUDGET_BYTES).await);
            held.push(bodies.budget.reserve(owner, OWN_BYTES).await);
        }
        for code in [2_000, 10_000, 60_000] {
            let (read, _) = bodies.read(&eve, Body::from(call(code))).await.unwrap();
            assert_eq!(read, call(code));
            let pieces = stream::iter([Ok::<_, std::io::Error>(call(code))]);
            assert_eq!(bodies.read(&eve, Body::from_stream(pieces)).await.unwrap().0, call(code));
        }
    }

    #[tokio::test]
    async fn body_with_many_marks_reserves_more_when_it_is_read() {
        let bodies = impatient();
        let (_, reservation) = bodies.read(&ada(), Body::from(format!("[{}0]", "0,".repeat(4_999)))).await.unwrap();
        assert!((5_000 * MARK_BYTES..5_100 * MARK_BYTES).contains(&reservation.bytes()), "{}", reservation.bytes());
        let held = bodies.budget.reserve(&ada(), BUDGET_BYTES / 2 - reservation.bytes()).await;
        let refused = bodies.read(&ada(), Body::from(format!("[{}0]", "0,".repeat(4_999)))).await.unwrap_err();
        assert_eq!(refused.status(), StatusCode::REQUEST_TIMEOUT);
        drop((held, reservation));
    }

    #[tokio::test]
    async fn body_without_a_length_reserves_its_actual_size() {
        let bodies = impatient();
        let large = vec![b'x'; REQUEST_BODY_BYTES_MAX];
        let chunks =
            stream::iter(large.chunks(50_000).map(|chunk| Ok::<_, std::io::Error>(chunk.to_vec())).collect::<Vec<_>>());
        assert_eq!(bodies.read(&ada(), Body::from_stream(chunks)).await.unwrap().0, large);
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
