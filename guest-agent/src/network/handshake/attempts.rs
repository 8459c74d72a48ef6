// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The programs' attempts to connect, from the first SYN until the agent accepts the connection. No I/O.
//!
//! ```text
//!   SYN ─▶ dialling ─▶ connected ─▶ accepted
//!              │            │
//!              └────────────┴─▶ removed: refused, program gone, or not accepted in time
//! ```

use std::{
    collections::{BTreeMap, btree_map::Entry},
    time::Duration,
};

use tokio::time::Instant;

use super::packet::{Ends, Syn};

/// Maximum number of attempts at a time, of which each has a task. A SYN beyond the limit is ignored, and the program's
/// kernel repeats it after a second.
const ATTEMPTS_MAX: usize = 1024;

/// Age from which an attempt is probed, at each check. Most attempts end earlier.
const PROBE_AGE: Duration = Duration::from_secs(1);

/// Maximum time from the server's answer until the connection is accepted. The kernel needs less than a millisecond,
/// but does not accept a SYN with unusual options, such as a signature.
const ACCEPT_MAX: Duration = Duration::from_secs(10);

/// The attempts. `D` is a running dial, which dropping cancels, and `F` a dialled flow.
#[derive(Debug)]
pub(super) struct Attempts<D, F> {
    attempts: BTreeMap<Ends, Attempt<D, F>>,
    /// The number of the latest dial.
    latest: u64,
}

#[derive(Debug)]
struct Attempt<D, F> {
    /// The latest SYN.
    syn: Syn,
    began: Instant,
    state: State<D, F>,
}

#[derive(Debug)]
enum State<D, F> {
    Dialling { number: u64, _dial: D },
    Connected { flow: F, since: Instant },
}

impl<D, F> Default for Attempts<D, F> {
    fn default() -> Self {
        Self { attempts: BTreeMap::new(), latest: 0 }
    }
}

impl<D, F> Attempts<D, F> {
    pub(super) fn is_empty(&self) -> bool {
        self.attempts.is_empty()
    }

    /// Records a SYN. A new attempt starts a dial with the number that `dial` gets. Returns the SYN if the server has
    /// already answered, so that it can be sent again.
    pub(super) fn on_syn(&mut self, syn: Syn, now: Instant, dial: impl FnOnce(u64) -> D) -> Option<&Syn> {
        let is_full = self.attempts.len() >= ATTEMPTS_MAX;
        match self.attempts.entry(syn.ends) {
            // A program that has closed its socket may connect again with the same port. The dial then serves its new
            // attempt.
            Entry::Occupied(entry) => {
                let attempt = entry.into_mut();
                attempt.syn = syn;
                matches!(attempt.state, State::Connected { .. }).then_some(&attempt.syn)
            }
            Entry::Vacant(_) if is_full => None,
            Entry::Vacant(entry) => {
                self.latest += 1;
                let state = State::Dialling { number: self.latest, _dial: dial(self.latest) };
                entry.insert(Attempt { syn, began: now, state });
                None
            }
        }
    }

    /// Records that the server has answered dial `number`. Returns the SYN to send again; `None`, without the flow, if
    /// the program no longer waits for this dial.
    pub(super) fn on_connected(&mut self, ends: Ends, number: u64, flow: F, now: Instant) -> Option<&Syn> {
        let attempt = self.attempts.get_mut(&ends).filter(|attempt| attempt.is_dialling(number))?;
        attempt.state = State::Connected { flow, since: now };
        Some(&attempt.syn)
    }

    /// Ends the attempt of a dial that failed. Returns its SYN; `None` if the program no longer waits for this dial.
    pub(super) fn on_failed(&mut self, ends: Ends, number: u64) -> Option<Syn> {
        self.attempts.get(&ends).filter(|attempt| attempt.is_dialling(number))?;
        self.attempts.remove(&ends).map(|attempt| attempt.syn)
    }

    /// Ends an attempt whose program no longer waits.
    pub(super) fn on_gone(&mut self, ends: Ends) {
        self.attempts.remove(&ends);
    }

    /// Returns the flow of an accepted connection; `None` if it was not dialled.
    pub(super) fn on_accepted(&mut self, ends: Ends) -> Option<F> {
        let Entry::Occupied(entry) = self.attempts.entry(ends) else { return None };
        matches!(entry.get().state, State::Connected { .. }).then(|| entry.remove()).and_then(Attempt::into_flow)
    }

    /// Removes the attempts that were not accepted in time, and returns those to probe.
    pub(super) fn check(&mut self, now: Instant) -> impl Iterator<Item = &Ends> {
        self.attempts.retain(|_, attempt| match attempt.state {
            State::Dialling { .. } => true,
            State::Connected { since, .. } => now.duration_since(since) < ACCEPT_MAX,
        });
        let is_due = move |attempt: &Attempt<D, F>| now.duration_since(attempt.began) >= PROBE_AGE;
        self.attempts.iter().filter(move |(_, attempt)| is_due(attempt)).map(|(ends, _)| ends)
    }
}

impl<D, F> Attempt<D, F> {
    fn is_dialling(&self, expected: u64) -> bool {
        matches!(self.state, State::Dialling { number, .. } if number == expected)
    }

    fn into_flow(self) -> Option<F> {
        match self.state {
            State::Dialling { .. } => None,
            State::Connected { flow, .. } => Some(flow),
        }
    }
}

#[cfg(test)]
mod tests;
