// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The room that a request's result takes, which it holds until its answer has been written: a client that does not read its
//! answers gets no more of it. A call's place among the calls is free before that, so that whoever has read an answer finds it
//! free.

use std::sync::{Arc, Mutex, PoisonError};

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
}
