// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The lifecycle of an environment, as a total function of state and event.
//!
//! ```text
//!              Ready               DestroyRequested               Released
//!  Creating ───────────▶ Running ────────────────────▶ Destroying ─────────▶ Destroyed
//!     │ │                   │                            ▲  ▲
//!     │ └───────────────────┼────── DestroyRequested ────┘  │
//!     │ Failed              │ Failed                        │
//!     ▼                     ▼                               │
//!     └─────────────────▶ Error ──── DestroyRequested ──────┘
//! ```
//!
//! A request to destroy is valid in every state and changes nothing once the destruction has begun. Any other event
//! that does not fit the state is refused with a reason. No event leads out of `Destroyed`.

/// The state of an environment.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum State {
    /// The machine is starting.
    Creating,
    /// The environment accepts calls.
    Running,
    /// The machine is being stopped.
    Destroying,
    /// All resources of the environment are released.
    Destroyed,
    /// The machine did not start, or ended by itself.
    Error,
}

impl State {
    /// All states, for tests and for schemas.
    pub const ALL: [Self; 5] = [Self::Creating, Self::Running, Self::Destroying, Self::Destroyed, Self::Error];

    /// Returns the name that clients see.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Destroying => "destroying",
            Self::Destroyed => "destroyed",
            Self::Error => "error",
        }
    }

    /// Returns the state after an event.
    ///
    /// # Errors
    /// [`Refusal`] if the event does not fit the state.
    pub fn after(self, event: Event) -> Result<Self, Refusal> {
        match (self, event) {
            (Self::Creating, Event::Ready) => Ok(Self::Running),
            (Self::Creating | Self::Running, Event::Failed) => Ok(Self::Error),
            (Self::Creating | Self::Running | Self::Error | Self::Destroying, Event::DestroyRequested) => {
                Ok(Self::Destroying)
            }
            (Self::Destroyed, Event::DestroyRequested) => Ok(Self::Destroyed),
            (Self::Destroying, Event::Released) => Ok(Self::Destroyed),
            (Self::Running, Event::Ready) => Err(Refusal::AlreadyRunning),
            (Self::Error, Event::Ready | Event::Failed) => Err(Refusal::AlreadyFailed),
            (Self::Destroying, Event::Ready | Event::Failed) => Err(Refusal::BeingDestroyed),
            (Self::Creating | Self::Running | Self::Error, Event::Released) => Err(Refusal::NotBeingDestroyed),
            (Self::Destroyed, Event::Ready | Event::Failed | Event::Released) => Err(Refusal::Gone),
        }
    }
}

/// An event in the lifecycle of an environment.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Event {
    /// The machine's agent serves calls.
    Ready,
    /// The machine did not start, or ended by itself.
    Failed,
    /// The environment must be destroyed, for example on a client's request or after its idle timeout.
    DestroyRequested,
    /// All resources of the environment are released.
    Released,
}

impl Event {
    /// All events, for tests.
    pub const ALL: [Self; 4] = [Self::Ready, Self::Failed, Self::DestroyRequested, Self::Released];
}

/// An event that does not fit the state.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refusal {
    #[error("the environment is already running")]
    AlreadyRunning,
    /// The environment failed, and can only be destroyed.
    #[error("the environment has already failed")]
    AlreadyFailed,
    #[error("the environment is being destroyed")]
    BeingDestroyed,
    /// No destruction was requested, so nothing can have been released.
    #[error("the environment is not being destroyed")]
    NotBeingDestroyed,
    #[error("the environment is destroyed")]
    Gone,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Repeats the transitions as a table with a row for each state and a column for each event, so that no transition
    /// changes by accident.
    #[test]
    fn every_pair_of_state_and_event_has_an_outcome() {
        use Refusal::*;
        use State::*;
        #[rustfmt::skip]
        let table = [
            //            Ready                Failed               DestroyRequested  Released
            (Creating,   [Ok(Running),         Ok(Error),           Ok(Destroying),   Err(NotBeingDestroyed)]),
            (Running,    [Err(AlreadyRunning), Ok(Error),           Ok(Destroying),   Err(NotBeingDestroyed)]),
            (Destroying, [Err(BeingDestroyed), Err(BeingDestroyed), Ok(Destroying),   Ok(Destroyed)]),
            (Destroyed,  [Err(Gone),           Err(Gone),           Ok(Destroyed),    Err(Gone)]),
            (Error,      [Err(AlreadyFailed),  Err(AlreadyFailed),  Ok(Destroying),   Err(NotBeingDestroyed)]),
        ];
        assert_eq!(table.map(|row| row.0), State::ALL);
        for (state, outcomes) in table {
            for (event, outcome) in Event::ALL.into_iter().zip(outcomes) {
                assert_eq!(state.after(event), outcome, "{state:?} after {event:?}");
            }
        }
    }

    fn walk(events: &[Event]) -> Vec<State> {
        let mut state = State::Creating;
        let mut seen = vec![state];
        for event in events {
            state = state.after(*event).unwrap_or(state);
            seen.push(state);
        }
        seen
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        proptest::collection::vec(proptest::sample::select(&Event::ALL[..]), 0..64)
    }

    proptest! {
        #[test]
        fn destroyed_is_final(events in events()) {
            let seen = walk(&events);
            if let Some(gone) = seen.iter().position(|state| *state == State::Destroyed) {
                prop_assert!(seen[gone..].iter().all(|state| *state == State::Destroyed));
            }
        }

        #[test]
        fn failed_environment_never_runs_again(events in events()) {
            let seen = walk(&events);
            if let Some(failed) = seen.iter().position(|state| *state == State::Error) {
                prop_assert!(!seen[failed..].contains(&State::Running));
            }
        }

        #[test]
        fn destroy_then_release_leads_to_destroyed_from_any_state(mut events in events()) {
            events.extend([Event::DestroyRequested, Event::Released]);
            prop_assert_eq!(walk(&events).pop(), Some(State::Destroyed));
        }
    }
}
