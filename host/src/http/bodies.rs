// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Reads the bodies of requests, each of them within a size and a time, and all of them together within a budget of
//! memory.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes, HttpBody as _, to_bytes},
    http::StatusCode,
    response::Response,
};
use futures_util::StreamExt as _;
use tokio::time::timeout;

use super::refusal::{refuse, too_intricate};
use crate::{
    budget::{Budget, Reservation},
    domain::principal::Principal,
    error_code::ErrorCode,
    mcp::REQUEST_BODY_BYTES_MAX,
};

/// Of all requests that are being read or answered: fifteen of the largest, and a little.
const BUDGET_BYTES: usize = 16 * REQUEST_BODY_BYTES_MAX;

/// A body has that long to arrive: the largest, over a slow line.
const BODY_TIME: Duration = Duration::from_secs(60);

/// What the budget has no room for waits that long.
const ROOM_TIME: Duration = Duration::from_secs(10);

/// Of a body that is too large, so much is read for nothing.
const DISCARDED_BYTES_MAX: usize = 4 * REQUEST_BODY_BYTES_MAX;

/// Commas, brackets and braces in one body, outside of its strings. A call has a few for each of its arguments and its
/// variables; each takes a hundred times its own size in memory, several times over, when the message is made out.
const MARKS_MAX: usize = 10_000;

/// The budget.
#[derive(Clone, Debug)]
pub(super) struct Bodies {
    budget: Arc<Budget>,
    body_time: Duration,
    room_time: Duration,
}

impl Bodies {
    pub(super) fn new() -> Self {
        Self { budget: Arc::new(Budget::new(BUDGET_BYTES)), body_time: BODY_TIME, room_time: ROOM_TIME }
    }

    /// A body, and its share of the budget.
    ///
    /// # Errors
    /// The answer to a request whose body is too large, too slow, too intricate, or one too many.
    pub(super) async fn read(&self, owner: &Principal, body: Body) -> Result<(Bytes, Reservation), Response> {
        let announced = body.size_hint().exact().map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        if announced.is_some_and(|bytes| bytes > REQUEST_BODY_BYTES_MAX) {
            let _ = timeout(self.room_time, discard(body)).await;
            return Err(too_large());
        }
        let room = self.budget.reserve(owner, announced.unwrap_or(REQUEST_BODY_BYTES_MAX));
        let Ok(mut room) = timeout(self.room_time, room).await else {
            return Err(too_slow("there is no room for the body, as other requests are being read"));
        };
        match timeout(self.body_time, to_bytes(body, REQUEST_BODY_BYTES_MAX)).await {
            Ok(Ok(bytes)) if has_more_marks(&bytes, MARKS_MAX) => Err(too_intricate(MARKS_MAX)),
            Ok(Ok(bytes)) => {
                room.shrink(bytes.len());
                Ok((bytes, room))
            }
            // The connection broke, and nobody reads this; or the body was longer than any may be.
            Ok(Err(_)) => Err(too_large()),
            Err(_) => Err(too_slow("the body did not arrive in time")),
        }
    }
}

/// Whether JSON has more values than so many commas, brackets and braces tell apart.
fn has_more_marks(json: &[u8], marks_max: usize) -> bool {
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
    marks > marks_max
}

/// Reads a body for nothing: most clients only look at an answer when they have sent all of their request.
async fn discard(body: Body) {
    let mut left = DISCARDED_BYTES_MAX;
    let mut pieces = body.into_data_stream();
    while let Some(Ok(piece)) = pieces.next().await {
        let Some(rest) = left.checked_sub(piece.len()) else { return };
        left = rest;
    }
}

fn too_large() -> Response {
    let message = format!("the body is larger than {REQUEST_BODY_BYTES_MAX} bytes");
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
        Bodies { body_time: soon, room_time: soon, ..Bodies::new() }
    }

    fn ada() -> Principal {
        "ada".parse().unwrap()
    }

    #[tokio::test]
    async fn a_body_that_does_not_end_is_given_up() {
        let bodies = impatient();
        let first = stream::once(async { Ok::<_, std::io::Error>(Bytes::from_static(b"{")) });
        let body = Body::from_stream(first.chain(stream::pending()));
        let response = bodies.read(&ada(), body).await.unwrap_err();
        assert_eq!(response.status(), StatusCode::REQUEST_TIMEOUT);
        assert!(bodies.read(&ada(), Body::from(vec![b'x'; REQUEST_BODY_BYTES_MAX])).await.is_ok());
    }

    #[tokio::test]
    async fn all_bodies_share_one_budget_and_one_caller_has_no_more_than_half() {
        let bodies = impatient();
        let [ada, bob, eve] = ["ada", "bob", "eve"].map(|name| name.parse::<Principal>().unwrap());
        let announced = || Body::from(vec![b'x'; REQUEST_BODY_BYTES_MAX]);
        let mut held = Vec::new();
        // Each takes one piece more than its bytes do, so one less than half of the budget has room.
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
        assert!(bodies.read(&eve, announced()).await.is_ok());
    }

    #[tokio::test]
    async fn a_body_without_a_length_takes_what_it_turns_out_to_need() {
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
    async fn a_body_of_very_many_values_is_refused_before_it_is_made_out() {
        let bodies = Bodies::new();
        let list = |values: usize| Body::from(format!("[{}0]", "0,".repeat(values - 1)));
        assert!(bodies.read(&ada(), list(MARKS_MAX)).await.is_ok());
        assert_eq!(bodies.read(&ada(), list(MARKS_MAX + 1)).await.unwrap_err().status(), StatusCode::BAD_REQUEST);
        // What stands in a string is text, whatever it looks like.
        let text = format!("[\"{}\"]", "[,\\\\\\\"".repeat(MARKS_MAX));
        assert!(bodies.read(&ada(), Body::from(text)).await.is_ok());
    }
}
