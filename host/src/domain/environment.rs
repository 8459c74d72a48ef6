// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The environment: one isolated Linux machine that a principal owns.
//!
//! The aggregate knows its state, how long it may idle and how many calls run in it. It has no clock: whoever tells it
//! about an event says when that was. Only the task that drives an environment changes it; everyone else has copies.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, Instant, SystemTime},
};

use uuid::Uuid;

use super::{
    egress::Policy,
    image::ImageRef,
    lifecycle::{Event, Refusal, State},
    ports::AgentOrigin,
    principal::Principal,
    runtime::Runtime,
};

/// Long enough for a sentence, short enough for a line of a list.
pub const NAME_CHARS_MAX: usize = 64;

/// How many calls can run in one environment at once. The link to the guest has 64 streams and the agent keeps itself
/// to half of them.
pub const CALLS_MAX: usize = 32;

/// Names an environment for its whole life and after: a random (version 4) UUID.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct EnvironmentId(Uuid);

impl EnvironmentId {
    /// A new one, never given before.
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl fmt::Display for EnvironmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for EnvironmentId {
    type Err = EnvironmentIdFault;

    /// Reads the hyphenated form that [`fmt::Display`] writes, and no other, so that one environment has one name.
    fn from_str(text: &str) -> Result<Self, EnvironmentIdFault> {
        let id = Uuid::try_parse(text).map_err(|_| EnvironmentIdFault)?;
        if id.hyphenated().to_string().eq_ignore_ascii_case(text) { Ok(Self(id)) } else { Err(EnvironmentIdFault) }
    }
}

/// The text is no environment id.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("that is not an environment id; one looks like 123e4567-e89b-42d3-a456-426614174000")]
pub struct EnvironmentIdFault;

/// What a client calls its environment; it need not be unique.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EnvironmentName(String);

impl EnvironmentName {
    /// Checks a name that a client sent.
    ///
    /// # Errors
    /// [`NameFault`] says which rule it breaks.
    pub fn parse(name: &str) -> Result<Self, NameFault> {
        let chars = name.chars().count();
        if name.trim().is_empty() {
            return Err(NameFault::Blank);
        }
        if chars > NAME_CHARS_MAX {
            return Err(NameFault::TooLong { chars });
        }
        if name.chars().any(char::is_control) { Err(NameFault::Control) } else { Ok(Self(name.to_owned())) }
    }

    /// The name of an environment whose client gave none: the runtime and the first digits of the id.
    #[must_use]
    pub fn of(runtime: Runtime, id: EnvironmentId) -> Self {
        let digits: String = id.to_string().chars().take(DEFAULT_NAME_DIGITS).collect();
        Self(format!("{runtime}-{digits}"))
    }

    /// The name as a text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// As many hexadecimal digits of the id as its first group has.
const DEFAULT_NAME_DIGITS: usize = 8;

/// Why a name is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NameFault {
    /// Nothing to read.
    #[error("the name is blank; leave it out to get one")]
    Blank,
    /// Longer than a list can show.
    #[error("the name has {chars} characters; at most {NAME_CHARS_MAX} are allowed")]
    TooLong {
        /// Its length.
        chars: usize,
    },
    /// Line breaks and the like.
    #[error("the name holds a control character, such as a line break")]
    Control,
}

/// One isolated Linux machine, as waggle remembers it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Environment {
    /// Its name for machines.
    pub id: EnvironmentId,
    /// Whose it is.
    pub owner: Principal,
    /// Its name for people.
    pub name: EnvironmentName,
    /// What it was made for.
    pub runtime: Runtime,
    /// What its root file system was made from.
    pub image: ImageRef,
    /// When it was asked for.
    pub created_at: SystemTime,
    /// How long it may stay without a call.
    pub idle_timeout: Duration,
    /// Which agent serves in it, once one does.
    pub agent_origin: Option<AgentOrigin>,
    state: State,
    last_activity: Instant,
    calls: usize,
}

/// What an environment is made of.
#[derive(Clone, Debug)]
pub struct NewEnvironment {
    /// Whose it will be.
    pub owner: Principal,
    /// The client's name for it, if it gave one.
    pub name: Option<EnvironmentName>,
    /// What it is for.
    pub runtime: Runtime,
    /// Its root file system.
    pub image: ImageRef,
    /// How long it may stay without a call.
    pub idle_timeout: Duration,
    /// What it may reach of what the server's policy allows; all of that if there is none.
    pub network: Option<Policy>,
}

impl Environment {
    /// Starts an environment's life in [`State::Creating`].
    #[must_use]
    pub fn create(id: EnvironmentId, new: NewEnvironment, created_at: SystemTime, now: Instant) -> Self {
        Self {
            id,
            owner: new.owner,
            name: new.name.unwrap_or_else(|| EnvironmentName::of(new.runtime, id)),
            runtime: new.runtime,
            image: new.image,
            created_at,
            idle_timeout: new.idle_timeout,
            agent_origin: None,
            state: State::Creating,
            last_activity: now,
            calls: 0,
        }
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Takes an event.
    ///
    /// # Errors
    /// [`Refusal`] if it does not fit the state, which stays as it is.
    pub fn apply(&mut self, event: Event, now: Instant) -> Result<State, Refusal> {
        self.state = self.state.after(event)?;
        self.last_activity = now;
        Ok(self.state)
    }

    /// Notes that a call begins.
    ///
    /// # Errors
    /// [`CallRefusal`] if it does not run, or has enough to do.
    pub fn begin_call(&mut self, now: Instant) -> Result<(), CallRefusal> {
        if self.state != State::Running {
            return Err(CallRefusal::NotRunning { state: self.state });
        }
        if self.calls >= CALLS_MAX {
            return Err(CallRefusal::Busy);
        }
        self.calls += 1;
        self.last_activity = now;
        Ok(())
    }

    /// Notes that a call has ended, however it did.
    pub fn end_call(&mut self, now: Instant) {
        self.calls = self.calls.saturating_sub(1);
        self.last_activity = now;
    }

    /// When it will have been idle for too long; never while a call runs in it or its machine is being made.
    #[must_use]
    pub fn idle_deadline(&self) -> Option<Instant> {
        match self.state {
            State::Running | State::Error if self.calls == 0 => self.last_activity.checked_add(self.idle_timeout),
            State::Running | State::Error | State::Creating | State::Destroying | State::Destroyed => None,
        }
    }
}

/// Why a call cannot begin.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CallRefusal {
    /// It takes calls in [`State::Running`] only.
    NotRunning {
        /// Where it stands.
        state: State,
    },
    /// [`CALLS_MAX`] calls run in it.
    Busy,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_as_it_was_written() {
        let id = EnvironmentId::random();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.to_string().to_uppercase().parse(), Ok(id));
    }

    fn environment(now: Instant) -> Environment {
        let new = NewEnvironment {
            owner: Principal::anonymous(),
            name: None,
            runtime: Runtime::Python,
            image: "python".parse().unwrap(),
            idle_timeout: Duration::from_secs(60),
            network: None,
        };
        Environment::create(EnvironmentId::random(), new, SystemTime::UNIX_EPOCH, now)
    }

    #[test]
    fn without_a_name_it_is_called_by_its_runtime_and_id() {
        let environment = environment(Instant::now());
        let digits = &environment.id.to_string()[..8];
        assert_eq!(environment.name.as_str(), format!("python-{digits}"));
    }

    #[test]
    fn a_running_call_keeps_its_environment_alive() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut environment = environment(start);
        assert_eq!(environment.idle_deadline(), None);
        assert_eq!(environment.apply(Event::Ready, start), Ok(State::Running));
        assert_eq!(environment.idle_deadline(), Some(start + 60 * second));

        assert_eq!(environment.begin_call(start + second), Ok(()));
        assert_eq!(environment.begin_call(start + second), Ok(()));
        environment.end_call(start + 500 * second);
        assert_eq!(environment.idle_deadline(), None);
        environment.end_call(start + 1000 * second);
        assert_eq!(environment.idle_deadline(), Some(start + 1060 * second));
    }

    #[test]
    fn calls_need_a_running_environment_and_have_a_limit() {
        let now = Instant::now();
        let mut environment = environment(now);
        assert_eq!(environment.begin_call(now), Err(CallRefusal::NotRunning { state: State::Creating }));
        environment.apply(Event::Ready, now).unwrap();
        for _ in 0..CALLS_MAX {
            assert_eq!(environment.begin_call(now), Ok(()));
        }
        assert_eq!(environment.begin_call(now), Err(CallRefusal::Busy));
    }

    #[test]
    fn an_event_that_does_not_fit_changes_nothing() {
        let now = Instant::now();
        let mut environment = environment(now);
        let before = environment.clone();
        assert_eq!(environment.apply(Event::Released, now), Err(Refusal::NotBeingDestroyed));
        assert_eq!(environment, before);
    }

    #[test]
    fn names_have_rules() {
        assert_eq!(EnvironmentName::parse("my data ä").unwrap().as_str(), "my data ä");
        assert_eq!(EnvironmentName::parse("  "), Err(NameFault::Blank));
        assert_eq!(EnvironmentName::parse("a\nb"), Err(NameFault::Control));
        assert_eq!(EnvironmentName::parse(&"ä".repeat(65)), Err(NameFault::TooLong { chars: 65 }));
        assert_eq!(EnvironmentName::parse(&"ä".repeat(64)).unwrap().as_str().len(), 128);
    }

    #[test]
    fn other_notations_of_an_id_are_refused() {
        for text in ["", "x", "123e4567e89b42d3a456426614174000", "{123e4567-e89b-42d3-a456-426614174000}"] {
            assert_eq!(text.parse::<EnvironmentId>(), Err(EnvironmentIdFault), "{text}");
        }
    }
}
