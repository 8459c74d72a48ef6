// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The events of one environment, for its owner to read. The events are in memory while the environment exists.

use std::{
    sync::{Arc, Mutex, Weak},
    time::SystemTime,
};

use tokio::sync::watch;
use waggle_shared::{mutex::lock, printable};

use crate::domain::{egress::Refused, environment::Environment, machine::Machine, stage::Stage};

/// Maximum number of events of one environment. An environment normally has fewer than ten, unless it is suspended
/// again and again.
const EVENTS_MAX: usize = 32;
/// Number of the first events that are never dropped: those of the start.
const FIRST_EVENTS: usize = 12;
/// Maximum number of bytes of an event: enough for a sentence with its cause.
const EVENT_BYTES_MAX: usize = 500;

/// One event.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Event {
    pub at: SystemTime,
    /// A sentence, safe to show.
    pub what: String,
}

/// The log of one environment.
#[derive(Clone, Debug)]
pub struct EnvironmentLog {
    /// A current copy of the environment.
    pub environment: Environment,
    /// The environment's events, oldest first.
    pub events: Vec<Event>,
    /// The last lines of the machine's console.
    pub console: Vec<String>,
    /// The number of connections and names that the network policy refused.
    pub refused: u64,
    /// The latest refusal.
    pub refused_last: Option<Refused>,
}

/// The events of one environment, the stage of its start, and a handle to its machine.
#[derive(Default)]
pub(super) struct Journal {
    stages: watch::Sender<Option<Stage>>,
    events: Mutex<Vec<Event>>,
    /// Weak, so that the journal does not keep the machine alive.
    machine: Mutex<Option<Weak<dyn Machine>>>,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").field("events", &self.events()).finish_non_exhaustive()
    }
}

impl Journal {
    /// Subscribes to the stages of the start.
    pub(super) fn stages(&self) -> watch::Receiver<Option<Stage>> {
        self.stages.subscribe()
    }

    /// Records an event. Truncates a long event. If the journal is full, drops the oldest event after the start.
    pub(super) fn note(&self, what: &str) {
        let what = printable::text(what, EVENT_BYTES_MAX);
        let mut events = lock(&self.events);
        if events.len() >= EVENTS_MAX {
            events.remove(FIRST_EVENTS);
        }
        events.push(Event { at: SystemTime::now(), what });
    }

    /// Publishes a stage of the start. Records each stage once, even if its progress is reported repeatedly.
    pub(super) fn note_stage(&self, stage: Stage) {
        let what = stage.describe();
        if self.stages.send_replace(Some(stage)).is_none_or(|before| before.describe() != what) {
            self.note(what);
        }
    }

    /// Sets the machine whose console and counts can be read.
    pub(super) fn set_machine(&self, machine: &Arc<dyn Machine>) {
        *lock(&self.machine) = Some(Arc::downgrade(machine));
    }

    /// Returns all events, oldest first.
    pub(super) fn events(&self) -> Vec<Event> {
        lock(&self.events).clone()
    }

    /// Returns the last lines of the machine's console, as long as the machine exists.
    pub(super) fn console(&self) -> Vec<String> {
        self.machine().map(|machine| machine.console()).unwrap_or_default()
    }

    /// Returns how many background processes were killed for want of memory; 0 if the machine no longer exists.
    pub(super) fn background_memory_kills(&self) -> u64 {
        self.machine().map_or(0, |machine| machine.agent().background_memory_kills())
    }

    fn machine(&self) -> Option<Arc<dyn Machine>> {
        lock(&self.machine).as_ref().and_then(Weak::upgrade)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::stage::Amount;

    #[test]
    fn stage_with_repeated_progress_is_recorded_once() {
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
    fn journal_limits_events_and_their_length() {
        let journal = Journal::default();
        for _ in 0..1000 {
            journal.note(&"a\nb\x1b".repeat(1000));
        }
        let events = journal.events();
        assert_eq!(events.len(), EVENTS_MAX);
        journal.note("last");
        assert_eq!((journal.events().len(), journal.events().pop().unwrap().what), (EVENTS_MAX, "last".to_owned()));
        assert!(events[0].what.starts_with("a\\u{a}b\\u{1b}a") && events[0].what.len() <= EVENT_BYTES_MAX);
        assert_eq!(journal.console(), Vec::<String>::new());
    }
}
