// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What happened to one environment, for its owner to read. It lives in memory as long as the environment does.

use std::{
    sync::{Arc, Mutex, MutexGuard, Weak},
    time::SystemTime,
};

use crate::{
    domain::ports::{Machine, Stage},
    mutex::lock,
};

/// A life has fewer than ten; more are none that a person reads.
const EVENTS_MAX: usize = 32;
/// Characters of an event: a sentence with its cause.
const EVENT_CHARS_MAX: usize = 500;

/// One thing that happened.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Event {
    /// When.
    pub at: SystemTime,
    /// What, in a sentence without control characters.
    pub what: String,
}

/// The events of one environment, and the way to its machine's console.
#[derive(Default)]
pub(super) struct Journal(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    events: Vec<Event>,
    stage: Option<&'static str>,
    /// Who reads must not keep the machine.
    machine: Option<Weak<dyn Machine>>,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").field("events", &self.lock().events).finish_non_exhaustive()
    }
}

impl Journal {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.0)
    }

    /// Notes an event; what is above the limits is left out.
    pub(super) fn note(&self, what: &str) {
        let what = what.chars().filter(|letter| !letter.is_control()).take(EVENT_CHARS_MAX).collect();
        let mut inner = self.lock();
        if inner.events.len() < EVENTS_MAX {
            inner.events.push(Event { at: SystemTime::now(), what });
        }
    }

    /// Notes that a stage of the start begins; it may be told many times how far it is.
    pub(super) fn note_stage(&self, stage: Stage) {
        let what = stage.describe();
        if self.lock().stage.replace(what) != Some(what) {
            self.note(what);
        }
    }

    /// Remembers whose console is to be read.
    pub(super) fn set_machine(&self, machine: &Arc<dyn Machine>) {
        self.lock().machine = Some(Arc::downgrade(machine));
    }

    /// Everything that happened, oldest first.
    pub(super) fn events(&self) -> Vec<Event> {
        self.lock().events.clone()
    }

    /// The last that the machine printed, while there is one.
    pub(super) fn console(&self) -> Vec<String> {
        let machine = self.lock().machine.as_ref().and_then(Weak::upgrade);
        machine.map(|machine| machine.console()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ports::Amount;

    #[test]
    fn a_stage_is_noted_once_however_often_it_tells_how_far_it_is() {
        let journal = Journal::default();
        journal.note_stage(Stage::Image);
        for done in 0..1000 {
            journal.note_stage(Stage::Pull(Amount { done, total: 1000 }));
        }
        journal.note_stage(Stage::Boot);
        let whats: Vec<_> = journal.events().into_iter().map(|event| event.what).collect();
        assert_eq!(whats, ["preparing the image", "pulling the image", "booting the machine"]);
    }

    #[test]
    fn a_journal_is_bounded_in_events_and_in_their_length() {
        let journal = Journal::default();
        for _ in 0..1000 {
            journal.note(&"a\nb\x1b".repeat(1000));
        }
        let events = journal.events();
        assert_eq!((events.len(), events[0].what.as_str()), (EVENTS_MAX, "ab".repeat(EVENT_CHARS_MAX / 2).as_str()));
        assert_eq!(journal.console(), Vec::<String>::new());
    }
}
