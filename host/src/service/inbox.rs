// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The requests to a driver, in order. Requests that came while the environment stood still come first.

use std::collections::VecDeque;

use tokio::sync::mpsc;

use super::request::Request;

#[derive(Debug)]
pub(super) struct Inbox {
    /// The requests that came while the environment stood still. Calls are limited by the places of the environment,
    /// forks by the slots of the server, and all others by the calls of the server.
    held: VecDeque<Request>,
    requests: mpsc::Receiver<Request>,
    is_open: bool,
}

impl Inbox {
    pub(super) fn new(requests: mpsc::Receiver<Request>) -> Self {
        Self { held: VecDeque::new(), requests, is_open: true }
    }

    /// Returns the next request, or `None` once no sender is left. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Request> {
        match self.held.pop_front() {
            Some(held) => Some(held),
            None => self.requests.recv().await,
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

    /// Holds a request until the environment no longer stands still.
    pub(super) fn hold(&mut self, request: Request) {
        self.held.push_back(request);
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
