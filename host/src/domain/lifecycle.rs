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
//!
//!           SuspendRequested             Suspended             ResumeRequested
//!  Running ─────────────────▶ Suspending ─────────▶ Suspended ────────────────▶ Resuming
//!   ▲   ▲                      │      │                 ▲                        │    │
//!   │   └─────────Ready────────┘      │ Failed          └─────────Failed─────────┘    │
//!   │                                 ▼                                               │
//!   │                               Error                                             │
//!   └──────────────────────────────────────Ready──────────────────────────────────────┘
//! ```
//!
//! A request to destroy is valid in every state and changes nothing once the destruction has begun. Any other event
//! that does not fit the state is refused with a reason. No event leads out of `Destroyed`. A failed resume loses
//! nothing: the environment stays suspended.

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
    /// The state of the machine is being saved.
    Suspending,
    /// The environment has no machine, only the saved state of one.
    Suspended,
    /// A machine is starting from the saved state.
    Resuming,
}

impl State {
    /// All states, for tests and for schemas.
    pub const ALL: [Self; 8] = [
        Self::Creating,
        Self::Running,
        Self::Destroying,
        Self::Destroyed,
        Self::Error,
        Self::Suspending,
        Self::Suspended,
        Self::Resuming,
    ];

    /// Returns the name that clients see.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Destroying => "destroying",
            Self::Destroyed => "destroyed",
            Self::Error => "error",
            Self::Suspending => "suspending",
            Self::Suspended => "suspended",
            Self::Resuming => "resuming",
        }
    }

    /// Returns the state after an event.
    ///
    /// # Errors
    /// [`Refusal`] if the event does not fit the state.
    pub fn after(self, event: Event) -> Result<Self, Refusal> {
        match (self, event) {
            (Self::Creating | Self::Resuming | Self::Suspending, Event::Ready) => Ok(Self::Running),
            (Self::Creating | Self::Running | Self::Suspending, Event::Failed) => Ok(Self::Error),
            (Self::Running, Event::SuspendRequested) => Ok(Self::Suspending),
            (Self::Suspending, Event::Suspended) | (Self::Resuming, Event::Failed) => Ok(Self::Suspended),
            (Self::Suspended, Event::ResumeRequested) => Ok(Self::Resuming),
            (Self::Destroyed, Event::DestroyRequested) => Ok(Self::Destroyed),
            (_, Event::DestroyRequested) => Ok(Self::Destroying),
            (Self::Destroying, Event::Released) => Ok(Self::Destroyed),
            (Self::Destroyed, _) => Err(Refusal::Gone),
            (_, Event::Released) => Err(Refusal::NotBeingDestroyed),
            (Self::Destroying, _) => Err(Refusal::BeingDestroyed),
            (Self::Error, Event::Ready | Event::Failed) => Err(Refusal::AlreadyFailed),
            (Self::Running, Event::Ready) => Err(Refusal::AlreadyRunning),
            (Self::Suspended, Event::Ready | Event::Failed) => Err(Refusal::NoMachine),
            (_, Event::SuspendRequested) => Err(Refusal::NotRunning),
            (_, Event::Suspended) => Err(Refusal::NotBeingSuspended),
            (_, Event::ResumeRequested) => Err(Refusal::NotSuspended),
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
    /// The state of the machine must be saved, for example after the idle timeout.
    SuspendRequested,
    /// The state of the machine is saved, and the machine has ended.
    Suspended,
    /// A call needs the machine of a suspended environment.
    ResumeRequested,
    /// The environment must be destroyed, for example on a client's request or after its idle timeout.
    DestroyRequested,
    /// All resources of the environment are released.
    Released,
}

impl Event {
    /// All events, for tests.
    pub const ALL: [Self; 7] = [
        Self::Ready,
        Self::Failed,
        Self::DestroyRequested,
        Self::Released,
        Self::SuspendRequested,
        Self::Suspended,
        Self::ResumeRequested,
    ];
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
    /// Only a running environment can be suspended.
    #[error("the environment is not running")]
    NotRunning,
    #[error("the environment is not being suspended")]
    NotBeingSuspended,
    #[error("the environment is not suspended")]
    NotSuspended,
    /// A suspended environment has no machine that could start or fail.
    #[error("the environment is suspended")]
    NoMachine,
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
        let [unsuspendable, unsuspended, unresumable] = [NotRunning, NotBeingSuspended, NotSuspended].map(Err);
        #[rustfmt::skip]
        let table = [
            // Ready, Failed, DestroyRequested, Released, SuspendRequested, Suspended, ResumeRequested
            (Creating,   [Ok(Running), Ok(Error), Ok(Destroying), Err(NotBeingDestroyed),
                          unsuspendable, unsuspended, unresumable]),
            (Running,    [Err(AlreadyRunning), Ok(Error), Ok(Destroying), Err(NotBeingDestroyed),
                          Ok(Suspending), unsuspended, unresumable]),
            (Destroying, [Err(BeingDestroyed), Err(BeingDestroyed), Ok(Destroying), Ok(Destroyed),
                          Err(BeingDestroyed), Err(BeingDestroyed), Err(BeingDestroyed)]),
            (Destroyed,  [Err(Gone), Err(Gone), Ok(Destroyed), Err(Gone),
                          Err(Gone), Err(Gone), Err(Gone)]),
            (Error,      [Err(AlreadyFailed), Err(AlreadyFailed), Ok(Destroying), Err(NotBeingDestroyed),
                          unsuspendable, unsuspended, unresumable]),
            (Suspending, [Ok(Running), Ok(Error), Ok(Destroying), Err(NotBeingDestroyed),
                          unsuspendable, Ok(Suspended), unresumable]),
            (Suspended,  [Err(NoMachine), Err(NoMachine), Ok(Destroying), Err(NotBeingDestroyed),
                          unsuspendable, unsuspended, Ok(Resuming)]),
            (Resuming,   [Ok(Running), Ok(Suspended), Ok(Destroying), Err(NotBeingDestroyed),
                          unsuspendable, unsuspended, unresumable]),
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
        fn suspended_environment_runs_again_only_after_a_resume(events in events()) {
            for pair in walk(&events).windows(2) {
                let before_running = [State::Running, State::Creating, State::Suspending, State::Resuming];
                prop_assert!(pair[1] != State::Running || before_running.contains(&pair[0]));
            }
        }

        #[test]
        fn failed_resume_loses_nothing(mut events in events()) {
            let before = walk(&events);
            events.extend([Event::ResumeRequested, Event::Failed]);
            if before.last() == Some(&State::Suspended) {
                prop_assert_eq!(walk(&events).pop(), Some(State::Suspended));
            }
        }

        #[test]
        fn destroy_then_release_leads_to_destroyed_from_any_state(mut events in events()) {
            events.extend([Event::DestroyRequested, Event::Released]);
            prop_assert_eq!(walk(&events).pop(), Some(State::Destroyed));
        }
    }
}
