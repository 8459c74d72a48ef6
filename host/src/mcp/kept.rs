// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The room that a request takes with its body until its call is over, and with its result until its answer has been
//! written: a client that does not read its answers gets no more of it. A call's place among the calls is free before
//! that, so that whoever has read an answer finds it free.

use std::sync::{Arc, Mutex, MutexGuard, Weak};

use crate::{budget::Room, mutex::lock};

/// It goes with its last copy; whoever writes the answer has one, and whoever makes it.
#[derive(Clone, Debug, Default)]
pub struct Kept(Arc<Mutex<Rooms>>);

#[derive(Debug, Default)]
struct Rooms {
    body: Option<Room>,
    results: Vec<Room>,
    /// Where results go whose request was cancelled.
    unasked: Option<Unasked>,
}

/// Results that came after their requests had been cancelled: a session keeps them until it ends, for a client that
/// might ask for messages that belong to no request.
#[derive(Clone, Debug, Default)]
pub(super) struct Unasked(Arc<Mutex<Vec<Room>>>);

impl Kept {
    fn rooms(&self) -> MutexGuard<'_, Rooms> {
        lock(&self.0)
    }

    /// Holds the room of the request's body.
    pub(crate) fn keep_body(&self, room: Room) {
        self.rooms().body = Some(room);
    }

    /// Holds the room of a result as well.
    pub(super) fn keep(&self, room: Room) {
        let mut rooms = self.rooms();
        match &rooms.unasked {
            Some(unasked) => unasked.push(room),
            None => rooms.results.push(room),
        }
    }

    /// The request was cancelled: the room of its result, here or still to come, is held there.
    pub(super) fn leave_to(&self, unasked: &Unasked) {
        let mut rooms = self.rooms();
        for room in std::mem::take(&mut rooms.results) {
            unasked.push(room);
        }
        rooms.unasked = Some(unasked.clone());
    }

    /// A look at it that holds nothing.
    pub(super) fn elsewhere(&self) -> KeptElsewhere {
        KeptElsewhere(Arc::downgrade(&self.0))
    }
}

impl Unasked {
    fn push(&self, room: Room) {
        lock(&self.0).push(room);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

/// What somebody else keeps, as long as he does.
#[derive(Clone, Debug)]
pub(super) struct KeptElsewhere(Weak<Mutex<Rooms>>);

impl KeptElsewhere {
    pub(super) fn is_kept(&self) -> bool {
        self.0.strong_count() > 0
    }

    pub(super) fn kept(&self) -> Option<Kept> {
        self.0.upgrade().map(Kept)
    }
}
