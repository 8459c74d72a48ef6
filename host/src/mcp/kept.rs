// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The room that a request's result takes, which it holds until its answer has been written: a client that does not read its
//! answers gets no more of it. A call's place among the calls is free before that, so that whoever has read an answer finds it
//! free.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::budget::Room;

/// It goes with its last copy; whoever writes the answer has one, and whoever makes it.
#[derive(Clone, Debug, Default)]
pub struct Kept(Arc<Mutex<Vec<Room>>>);

impl Kept {
    /// Holds this as well.
    pub(super) fn keep(&self, room: Room) {
        // Nothing panics while it holds this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(room);
    }

    /// A look at it that holds nothing.
    pub(super) fn elsewhere(&self) -> KeptElsewhere {
        KeptElsewhere(Arc::downgrade(&self.0))
    }
}

/// What somebody else keeps, as long as he does.
#[derive(Clone, Debug)]
pub(super) struct KeptElsewhere(Weak<Mutex<Vec<Room>>>);

impl KeptElsewhere {
    pub(super) fn is_kept(&self) -> bool {
        self.0.strong_count() > 0
    }

    pub(super) fn kept(&self) -> Option<Kept> {
        self.0.upgrade().map(Kept)
    }
}
