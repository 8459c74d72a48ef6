// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The memory that a request holds: for its body until the call is over, for its result until the answer is written.
//!
//! A client that does not read its answers therefore runs out of memory budget. The permit that counts the running call
//! is released earlier, so a client that has read an answer can make the next call at once.

use std::sync::{Arc, Mutex, MutexGuard, Weak};

use crate::{budget::Reservation, mutex::lock};

/// The reservations of one request. Released when the last clone drops: the handler holds one, the response writer
/// another.
#[derive(Clone, Debug, Default)]
pub struct RequestMemory(Arc<Mutex<Reservations>>);

#[derive(Debug, Default)]
struct Reservations {
    body: Option<Reservation>,
    results: Vec<Reservation>,
    /// Set once the request is cancelled; takes the reservations of its results.
    orphaned: Option<OrphanedResults>,
}

/// The reservations of results whose requests were cancelled. rmcp holds such results until the session ends, so a
/// session holds this for as long.
#[derive(Clone, Debug, Default)]
pub(super) struct OrphanedResults(Arc<Mutex<Vec<Reservation>>>);

impl RequestMemory {
    fn reservations(&self) -> MutexGuard<'_, Reservations> {
        lock(&self.0)
    }

    pub(crate) fn hold_body(&self, reservation: Reservation) {
        self.reservations().body = Some(reservation);
    }

    /// Holds the reservation of a result, or charges it to the session if the request was cancelled.
    pub(super) fn hold_result(&self, reservation: Reservation) {
        let mut reservations = self.reservations();
        match &reservations.orphaned {
            Some(orphaned) => orphaned.push(reservation),
            None => reservations.results.push(reservation),
        }
    }

    /// Moves the reservations of this cancelled request's results, present and future, to `orphaned`.
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

/// A weak handle to the memory of a request, which it does not keep reserved.
#[derive(Clone, Debug)]
pub(super) struct WeakRequestMemory(Weak<Mutex<Reservations>>);

impl WeakRequestMemory {
    pub(super) fn upgrade(&self) -> Option<RequestMemory> {
        self.0.upgrade().map(RequestMemory)
    }
}
