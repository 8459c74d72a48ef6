// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The life of an environment, as a total function over state and event.
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
//! Asking for a destruction is right in every state and changes nothing once it is under way. Every other event that
//! does not fit is refused, and the refusal says what stands against it. Nothing leaves `Destroyed`.

/// Where an environment stands.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum State {
    /// Its machine is being made.
    Creating,
    /// It takes calls.
    Running,
    /// Its machine is being ended.
    Destroying,
    /// Nothing of it is left.
    Destroyed,
    /// Its machine could not be made, or ended by itself.
    Error,
}

impl State {
    /// All of them, for tests and for schemas.
    pub const ALL: [Self; 5] = [Self::Creating, Self::Running, Self::Destroying, Self::Destroyed, Self::Error];

    /// The word that clients see.
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

    /// Where an event leads.
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

/// What can happen to an environment.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Event {
    /// The machine's agent serves calls.
    Ready,
    /// The machine did not start, or is gone without having been told to.
    Failed,
    /// A client, the idle time-out or the shutdown wants it gone.
    DestroyRequested,
    /// Everything that was held for it has been given back.
    Released,
}

impl Event {
    /// All of them, for tests.
    pub const ALL: [Self; 4] = [Self::Ready, Self::Failed, Self::DestroyRequested, Self::Released];
}

/// An event that does not fit the state.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// It runs already.
    #[error("the environment is running already")]
    AlreadyRunning,
    /// It failed, and only a destruction is left.
    #[error("the environment has failed already")]
    AlreadyFailed,
    /// It is on its way out.
    #[error("the environment is being destroyed")]
    BeingDestroyed,
    /// Nobody has asked for its destruction, so nothing can have been released.
    #[error("the environment is not being destroyed")]
    NotBeingDestroyed,
    /// It is destroyed.
    #[error("the environment is destroyed")]
    Gone,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The table once more, a row a state and a column an event, so that a change has to be made twice.
    #[test]
    fn every_pair_of_state_and_event_has_its_outcome() {
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

    proptest! {
        #[test]
        fn gone_is_final(events in proptest::collection::vec(proptest::sample::select(&Event::ALL[..]), 0..64)) {
            let seen = walk(&events);
            if let Some(gone) = seen.iter().position(|state| *state == State::Destroyed) {
                prop_assert!(seen[gone..].iter().all(|state| *state == State::Destroyed));
            }
        }

        #[test]
        fn what_failed_never_runs_again(events in proptest::collection::vec(proptest::sample::select(&Event::ALL[..]), 0..64)) {
            let seen = walk(&events);
            if let Some(failed) = seen.iter().position(|state| *state == State::Error) {
                prop_assert!(!seen[failed..].contains(&State::Running));
            }
        }

        #[test]
        fn a_destruction_and_a_release_end_any_life(
            events in proptest::collection::vec(proptest::sample::select(&Event::ALL[..]), 0..64),
        ) {
            let mut events = events;
            events.extend([Event::DestroyRequested, Event::Released]);
            prop_assert_eq!(walk(&events).pop(), Some(State::Destroyed));
        }
    }
}
