// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What the requests of one session are called, which their answers and reports find their ways by.

use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use rmcp::model::{ClientJsonRpcMessage, GetMeta as _, NumberOrString};

use super::SessionRefusal;
use crate::mcp::kept::{Kept, KeptElsewhere};

/// Answers of one session that its client did not read to their ends: what those requests were called stays taken. With
/// so many the session is over, and its client begins another one.
pub(super) const LEFT_MAX: usize = 1024;

/// What the requests of a session are called that are not over, or whose answers were left: hashes of their ids and of
/// their progress tokens, which may be as long as a body. Two that are the same by chance cost their client an error.
#[derive(Debug, Default)]
pub(super) struct Names {
    taken: HashSet<u64>,
    left: usize,
    /// What the requests hold whose answers were left: a client may take one up again.
    left_with: Vec<KeptElsewhere>,
}

impl Names {
    /// Takes what a request is called.
    pub(super) fn take(&mut self, names: &[u64]) -> Result<(), SessionRefusal> {
        if names.iter().any(|name| self.taken.contains(name)) {
            return Err(SessionRefusal::Repeated);
        }
        self.taken.extend(names);
        Ok(())
    }

    /// Notes that nobody reads a request's answer any more.
    pub(super) fn give_back(&mut self, names: &[u64], ended: bool, kept: &Kept) {
        if ended {
            self.taken.retain(|name| !names.contains(name));
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
    let hash = |kind: &str, name: &NumberOrString| {
        let mut hasher = DefaultHasher::new();
        (kind, name).hash(&mut hasher);
        hasher.finish()
    };
    let token = token.map(|token| hash("token", &token.0));
    [Some(hash("id", &request.id)), token].into_iter().flatten().collect()
}
