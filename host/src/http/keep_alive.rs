// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Keeps a connection alive while the answer to a long call is one JSON document.
//!
//! Clients and proxies give up on a response that sends nothing for a minute or a few. JSON may begin with white space
//! (RFC 8259, section 2), so a line break is sent from time to time until the call has ended.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    body::{Body, BodyDataStream, Bytes},
    http::{HeaderValue, header::CONTENT_TYPE},
    response::Response,
};
use futures_util::{FutureExt as _, Stream, StreamExt as _, future::BoxFuture};
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

use super::negotiation::into_document;

/// Time after which a response begins although the call has not ended, and the interval between two line breaks.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Returns the response, or after [`KEEP_ALIVE`] a response that begins with line breaks.
pub(super) async fn kept_alive(mut response: BoxFuture<'static, Response>) -> Response {
    if let Ok(response) = timeout(KEEP_ALIVE, &mut response).await {
        return response;
    }
    let mut interval = interval(KEEP_ALIVE);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The client has seen the type of the response, so an event stream is converted.
    let response = async { into_document(response.await).await }.boxed();
    let mut begun = Response::new(Body::from_stream(LineBreaks::Waiting { response, interval }));
    begun.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    begun
}

/// Line breaks until the response is there, then the response's body.
enum LineBreaks {
    Waiting { response: BoxFuture<'static, Response>, interval: Interval },
    Body(BodyDataStream),
}

impl Stream for LineBreaks {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Self::Waiting { response, interval } = &mut *self {
            let Poll::Ready(response) = response.poll_unpin(context) else {
                ready!(interval.poll_tick(context));
                return Poll::Ready(Some(Ok(Bytes::from_static(b"\n"))));
            };
            *self = Self::Body(response.into_body().into_data_stream());
        }
        match &mut *self {
            Self::Body(body) => body.poll_next_unpin(context),
            Self::Waiting { .. } => Poll::Pending,
        }
    }
}
