// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What the requests of one session are called, which their answers and reports find their ways by.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use rmcp::model::{ClientJsonRpcMessage, ClientNotification, GetMeta as _, NumberOrString};

use super::SessionRefusal;
use crate::mcp::kept::{Kept, KeptElsewhere};

/// Answers of one session that its client did not read to their ends: what those requests were called stays taken. With
/// so many the session is over, and its client begins another one.
pub(super) const LEFT_MAX: usize = 1024;

/// What the requests of a session are called that are not over, or whose answers were left: hashes of their ids and of
/// their progress tokens, which may be as long as a body. Two that are the same by chance cost their client an error.
#[derive(Debug, Default)]
pub(super) struct Names {
    taken: HashMap<u64, KeptElsewhere>,
    left: usize,
    /// What the requests hold whose answers were left: a client may take one up again.
    left_with: Vec<KeptElsewhere>,
}

impl Names {
    /// Takes what a request is called that holds this.
    pub(super) fn take(&mut self, names: &[u64], kept: &Kept) -> Result<(), SessionRefusal> {
        if names.iter().any(|name| self.taken.contains_key(name)) {
            return Err(SessionRefusal::Repeated);
        }
        self.taken.extend(names.iter().map(|name| (*name, kept.elsewhere())));
        Ok(())
    }

    /// What the request holds that is called so, if its call is not over or its answer not out.
    pub(super) fn kept_by(&self, name: u64) -> Option<Kept> {
        self.taken.get(&name)?.kept()
    }

    /// Notes that nobody reads a request's answer any more.
    pub(super) fn give_back(&mut self, names: &[u64], ended: bool, kept: &Kept) {
        if ended {
            self.taken.retain(|name, _| !names.contains(name));
        } else {
            self.left += 1;
            self.left_with.retain(KeptElsewhere::is_kept);
            self.left_with.push(kept.elsewhere());
        }
    }

    /// Whether too many answers were left.
    pub(super) fn are_worn(&self) -> bool {
        self.left >= LEFT_MAX
    }

    /// What the requests hold whose answers were left.
    pub(super) fn left_with(&self) -> Vec<Kept> {
        self.left_with.iter().filter_map(KeptElsewhere::kept).collect()
    }
}

/// What a message is called, if it is a request.
pub(super) fn names_of(message: &ClientJsonRpcMessage) -> Vec<u64> {
    let ClientJsonRpcMessage::Request(request) = message else { return Vec::new() };
    let token = request.request.get_meta().get_progress_token();
    let token = token.map(|token| hash("token", &token.0));
    [Some(hash("id", &request.id)), token].into_iter().flatten().collect()
}

/// Which request a message cancels.
pub(super) fn cancelled_by(message: &ClientJsonRpcMessage) -> Option<u64> {
    let ClientJsonRpcMessage::Notification(notification) = message else { return None };
    let ClientNotification::CancelledNotification(cancelled) = &notification.notification else { return None };
    cancelled.params.request_id.as_ref().map(|id| hash("id", id))
}

fn hash(kind: &str, name: &NumberOrString) -> u64 {
    let mut hasher = DefaultHasher::new();
    (kind, name).hash(&mut hasher);
    hasher.finish()
}
