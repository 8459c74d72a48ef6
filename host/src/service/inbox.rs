// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The requests to a driver, in order. Requests that came while the environment stood still come first.

use std::collections::VecDeque;

use tokio::sync::mpsc;

use super::request::Request;
use crate::domain::environment::CALLS_MAX;

/// Maximum number of requests that are held: those of four times as many calls as one environment runs. Callers that
/// left do not count.
const HELD_MAX: usize = 4 * CALLS_MAX;

#[derive(Debug)]
pub(super) struct Inbox {
    /// The requests that came while the environment stood still.
    held: VecDeque<Request>,
    requests: mpsc::Receiver<Request>,
    is_open: bool,
}

impl Inbox {
    pub(super) fn new(requests: mpsc::Receiver<Request>) -> Self {
        Self { held: VecDeque::new(), requests, is_open: true }
    }

    /// Returns the next request whose caller waits for it, or `None` once no sender is left. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Request> {
        loop {
            let next = match self.held.pop_front() {
                Some(held) => Some(held),
                None => self.requests.recv().await,
            };
            if !next.as_ref().is_some_and(Request::is_abandoned) {
                return next;
            }
        }
    }

    /// Returns the next request that is not held, or once `None` if no sender is left. Cancel safe.
    pub(super) async fn arrival(&mut self) -> Option<Request> {
        if !self.is_open {
            return std::future::pending().await;
        }
        let request = self.requests.recv().await;
        self.is_open = request.is_some();
        request
    }

    /// Holds a request until the environment no longer stands still. Returns the request if too many are held.
    #[must_use]
    pub(super) fn hold(&mut self, request: Request) -> Option<Request> {
        self.held.retain(|held| !held.is_abandoned());
        if self.held.len() >= HELD_MAX {
            return Some(request);
        }
        self.held.push_back(request);
        None
    }

    /// Makes a request the next one.
    pub(super) fn put_back(&mut self, request: Request) {
        self.held.push_front(request);
    }

    /// Returns all held requests, and holds none of them.
    pub(super) fn take_held(&mut self) -> VecDeque<Request> {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::{super::request::ForkRequest, *};

    #[tokio::test]
    async fn requests_of_callers_that_left_are_dropped_and_the_others_are_limited() {
        let (sender, receiver) = mpsc::channel(1);
        let mut inbox = Inbox::new(receiver);
        let fork = |waits| {
            let (reply, answer) = oneshot::channel();
            (Request::Fork(ForkRequest { waits, reply }), answer)
        };
        for _ in 0..2 * HELD_MAX {
            assert!(inbox.hold(fork(false).0).is_none());
        }
        assert_eq!(inbox.held.len(), 1);
        let mut answers = Vec::new();
        for _ in 0..HELD_MAX {
            let (request, answer) = fork(true);
            assert!(inbox.hold(request).is_none());
            answers.push(answer);
        }
        let (surplus, _answer) = fork(true);
        assert!(inbox.hold(surplus).is_some());
        sender.send(fork(false).0).await.unwrap();
        drop((answers, sender));
        assert!(inbox.next().await.is_none());
    }
}
