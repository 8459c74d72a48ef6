// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The reserved memory of a request: for the body until the call ends, for the result until the answer is written.
//!
//! A client that does not read its answers therefore runs out of memory budget. The permit of the running call is
//! released earlier than the memory, so a client that has read an answer can make the next call at once.

use std::sync::{Arc, Mutex, MutexGuard, Weak};

use waggle_shared::mutex::lock;

use crate::budget::Reservation;

/// The reservations of one request. The handler and the response writer have one clone each; dropping the last clone
/// releases the reservations.
#[derive(Clone, Debug, Default)]
pub struct RequestMemory(Arc<Mutex<Reservations>>);

#[derive(Debug, Default)]
struct Reservations {
    body: Option<Reservation>,
    results: Vec<Reservation>,
    /// Set when the request is cancelled. From then on, all reservations of its results belong to the session.
    orphaned: Option<OrphanedResults>,
}

/// The reservations of the results of cancelled requests. rmcp keeps such results until the session ends, so the
/// session keeps these reservations until then.
#[derive(Clone, Debug, Default)]
pub(super) struct OrphanedResults(Arc<Mutex<Vec<Reservation>>>);

impl RequestMemory {
    fn reservations(&self) -> MutexGuard<'_, Reservations> {
        lock(&self.0)
    }

    pub(crate) fn hold_body(&self, reservation: Reservation) {
        self.reservations().body = Some(reservation);
    }

    /// Releases the reservation of the body, except for one unit: an answer that waits for its client costs something.
    pub(super) fn shrink_body(&self) {
        if let Some(body) = &mut self.reservations().body {
            body.shrink(0);
        }
    }

    /// Returns the reserved size of the results in bytes.
    pub(super) fn result_bytes(&self) -> usize {
        self.reservations().results.iter().map(Reservation::bytes).sum()
    }

    /// Stores the reservation of a result. If the request was cancelled, the reservation is charged to the session.
    pub(super) fn hold_result(&self, reservation: Reservation) {
        let mut reservations = self.reservations();
        match &reservations.orphaned {
            Some(orphaned) => orphaned.push(reservation),
            None => reservations.results.push(reservation),
        }
    }

    /// Moves all present and future result reservations of this cancelled request to `orphaned`.
    pub(super) fn move_results_to(&self, orphaned: &OrphanedResults) {
        let mut reservations = self.reservations();
        for reservation in std::mem::take(&mut reservations.results) {
            orphaned.push(reservation);
        }
        reservations.orphaned = Some(orphaned.clone());
    }

    pub(super) fn downgrade(&self) -> WeakRequestMemory {
        WeakRequestMemory(Arc::downgrade(&self.0))
    }
}

impl OrphanedResults {
    fn push(&self, reservation: Reservation) {
        lock(&self.0).push(reservation);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

/// A weak handle to the memory of a request. The handle does not keep the memory reserved.
#[derive(Clone, Debug)]
pub(super) struct WeakRequestMemory(Weak<Mutex<Reservations>>);

impl WeakRequestMemory {
    pub(super) fn upgrade(&self) -> Option<RequestMemory> {
        self.0.upgrade().map(RequestMemory)
    }
}
