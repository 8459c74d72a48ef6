// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! A response body that holds the memory reservations of its request until it has been written.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::body::{Body, Bytes, HttpBody};
use http_body::{Frame, SizeHint};

/// Maximum size of a piece of the response, in bytes. The connection polls for the next piece after writing most of the
/// earlier pieces, so the reservations are released when the client has read almost the whole response.
const PIECE_BYTES: usize = 64 * 1024;

/// A body, and a value that is dropped with it.
pub(super) struct HoldingBody<H> {
    body: Body,
    /// The part of the body's last frame that has not been passed on.
    rest: Bytes,
    _held: H,
}

impl<H> HoldingBody<H> {
    /// Wraps a body; `held` is dropped with it.
    pub(super) fn new(body: Body, held: H) -> Self {
        Self { body, rest: Bytes::new(), _held: held }
    }
}

impl<H: Unpin> HttpBody for HoldingBody<H> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                end => return Poll::Ready(end),
            }
        }
        let piece = self.rest.len().min(PIECE_BYTES);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, hint) = (self.rest.len() as u64, self.body.size_hint());
        let mut all = SizeHint::new();
        all.set_lower(hint.lower().saturating_add(rest));
        if let Some(upper) = hint.upper() {
            all.set_upper(upper.saturating_add(rest));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn large_response_is_sent_in_pieces_and_holds_its_value_until_the_last() {
        let whole = vec![b'x'; 3 * PIECE_BYTES - 1];
        let held = Arc::new(());
        let body = Body::new(HoldingBody::new(Body::from(whole.clone()), Arc::clone(&held)));
        assert_eq!(body.size_hint().exact(), Some(whole.len() as u64));
        let mut pieces = body.into_data_stream();
        let mut seen = Vec::new();
        while let Some(piece) = pieces.next().await {
            let piece = piece.unwrap();
            assert!(piece.len() <= PIECE_BYTES);
            assert_eq!(Arc::strong_count(&held), 2);
            seen.extend(piece);
        }
        drop(pieces);
        assert_eq!((seen == whole, Arc::strong_count(&held)), (true, 1));
    }
}
