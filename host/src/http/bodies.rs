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
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::refusal::refuse;
use crate::{error_code::ErrorCode, mcp::REQUEST_BODY_BYTES_MAX};

/// Of all requests that are being read or answered: sixteen of the largest.
const BUDGET_BYTES: usize = 16 * REQUEST_BODY_BYTES_MAX;

/// The budget is counted in pieces of this size, so that it counts requests without a body, too.
const PIECE_BYTES: usize = 1024;

/// A body has that long to arrive: the largest, over a slow line.
const BODY_TIME: Duration = Duration::from_secs(60);

/// What the budget has no room for waits that long.
const ROOM_TIME: Duration = Duration::from_secs(10);

/// Of a body that is too large, so much is read for nothing.
const DISCARDED_BYTES_MAX: usize = 4 * REQUEST_BODY_BYTES_MAX;

/// The budget.
#[derive(Clone, Debug)]
pub(super) struct Bodies {
    room: Arc<Semaphore>,
    body_time: Duration,
    room_time: Duration,
}

impl Bodies {
    pub(super) fn new() -> Self {
        let room = Arc::new(Semaphore::new(BUDGET_BYTES / PIECE_BYTES));
        Self { room, body_time: BODY_TIME, room_time: ROOM_TIME }
    }

    /// A body, and its share of the budget.
    ///
    /// # Errors
    /// The answer to a request whose body is too large, too slow, or one too many.
    pub(super) async fn read(&self, body: Body) -> Result<(Bytes, OwnedSemaphorePermit), Response> {
        let announced = body.size_hint().exact().map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        if announced.is_some_and(|bytes| bytes > REQUEST_BODY_BYTES_MAX) {
            let _ = timeout(self.room_time, discard(body)).await;
            return Err(too_large());
        }
        let pieces = pieces(announced.unwrap_or(REQUEST_BODY_BYTES_MAX));
        let room = timeout(self.room_time, Arc::clone(&self.room).acquire_many_owned(pieces)).await;
        let Ok(Ok(mut room)) = room else {
            return Err(too_slow("there is no room for the body, as other requests are being read"));
        };
        match timeout(self.body_time, to_bytes(body, REQUEST_BODY_BYTES_MAX)).await {
            Ok(Ok(bytes)) => {
                let surplus = room.num_permits().saturating_sub(pieces_of(bytes.len()));
                drop(room.split(surplus));
                Ok((bytes, room))
            }
            // The connection broke, and nobody reads this; or the body was longer than any may be.
            Ok(Err(_)) => Err(too_large()),
            Err(_) => Err(too_slow("the body did not arrive in time")),
        }
    }
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

fn pieces_of(bytes: usize) -> usize {
    1 + bytes / PIECE_BYTES
}

fn pieces(bytes: usize) -> u32 {
    u32::try_from(pieces_of(bytes)).unwrap_or(u32::MAX)
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

    #[tokio::test]
    async fn a_body_that_does_not_end_is_given_up() {
        let bodies = impatient();
        let first = stream::once(async { Ok::<_, std::io::Error>(Bytes::from_static(b"{")) });
        let body = Body::from_stream(first.chain(stream::pending()));
        let response = bodies.read(body).await.unwrap_err();
        assert_eq!(response.status(), StatusCode::REQUEST_TIMEOUT);
        assert_eq!(bodies.room.available_permits(), BUDGET_BYTES / PIECE_BYTES);
    }

    #[tokio::test]
    async fn all_bodies_share_one_budget() {
        let bodies = impatient();
        let announced = || Body::from(vec![b'x'; REQUEST_BODY_BYTES_MAX]);
        let mut held = Vec::new();
        // Each takes one piece more than its bytes do, so the last one has no room.
        for _ in 0..15 {
            held.push(bodies.read(announced()).await.unwrap());
        }
        assert_eq!(bodies.read(announced()).await.unwrap_err().status(), StatusCode::REQUEST_TIMEOUT);
        assert_eq!(bodies.read(Body::from("small")).await.unwrap().0, "small");
        held.pop();
        assert!(bodies.read(announced()).await.is_ok());
    }

    #[tokio::test]
    async fn a_body_without_a_length_takes_what_it_turns_out_to_need() {
        let bodies = Bodies::new();
        let pieces = stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"ab")), Ok(Bytes::from_static(b"cd"))]);
        let (bytes, room) = bodies.read(Body::from_stream(pieces)).await.unwrap();
        assert_eq!((bytes.as_ref(), room.num_permits()), (b"abcd".as_slice(), 1));
        let endless = Body::from_stream(stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from(vec![0; 1 << 20]))));
        assert_eq!(bodies.read(endless).await.unwrap_err().status(), StatusCode::PAYLOAD_TOO_LARGE);
    }
}
