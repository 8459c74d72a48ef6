// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Request ids and progress tokens in use in one session.
//!
//! A session's answers are routed by request id and its progress reports by token, so two open requests must not share
//! an id or a token.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use rmcp::model::{ClientJsonRpcMessage, ClientNotification, GetMeta as _, NumberOrString};

use super::SessionRefusal;
use crate::mcp::memory::{RequestMemory, WeakRequestMemory};

/// The ids and tokens of requests whose answers can still be read.
///
/// Only hashes are stored, which need less memory than ids. A collision costs the client one error.
#[derive(Debug, Default)]
pub(super) struct RequestIds {
    in_use: HashMap<u64, WeakRequestMemory>,
}

impl RequestIds {
    /// Registers the ids of a request, together with the request's `memory`.
    pub(super) fn register(&mut self, ids: &[u64], memory: &RequestMemory) -> Result<(), SessionRefusal> {
        if ids.iter().any(|id| self.in_use.contains_key(id)) {
            return Err(SessionRefusal::Repeated);
        }
        self.in_use.extend(ids.iter().map(|id| (*id, memory.downgrade())));
        Ok(())
    }

    /// Returns the memory of the request with this id, if the call is running or the answer is being written.
    pub(super) fn memory_of(&self, id: u64) -> Option<RequestMemory> {
        self.in_use.get(&id)?.upgrade()
    }

    pub(super) fn release(&mut self, ids: &[u64]) {
        self.in_use.retain(|id, _| !ids.contains(id));
    }
}

/// Returns the hashes of a request's id and progress token; empty for other messages.
pub(super) fn ids_of(message: &ClientJsonRpcMessage) -> Vec<u64> {
    let ClientJsonRpcMessage::Request(request) = message else { return Vec::new() };
    let token = request.request.get_meta().get_progress_token();
    let token = token.map(|token| hash("token", &token.0));
    [Some(hash("id", &request.id)), token].into_iter().flatten().collect()
}

/// Returns the hash of the request id in a cancellation; `None` for other messages.
pub(super) fn cancelled_id(message: &ClientJsonRpcMessage) -> Option<u64> {
    let ClientJsonRpcMessage::Notification(notification) = message else { return None };
    let ClientNotification::CancelledNotification(cancelled) = &notification.notification else { return None };
    cancelled.params.request_id.as_ref().map(|id| hash("id", id))
}

fn hash(kind: &str, value: &NumberOrString) -> u64 {
    let mut hasher = DefaultHasher::new();
    (kind, value).hash(&mut hasher);
    hasher.finish()
}
