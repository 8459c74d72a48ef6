// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What a request holds until its answer has been written: its place among the calls, and the room that its result takes.
//! A client that does not read its answers gets no more of either.

use std::{
    any::Any,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

/// It goes with its last copy; whoever writes the answer has one, and whoever makes it.
#[derive(Clone, Default)]
pub struct Kept(Arc<Mutex<Vec<Box<dyn Any + Send>>>>);

impl Kept {
    /// Holds this as well.
    pub(super) fn keep(&self, what: impl Any + Send) {
        // Nothing panics while it holds this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(what));
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").finish_non_exhaustive()
    }
}
