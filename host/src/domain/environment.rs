// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The environment: one isolated Linux machine that a principal owns.
//!
//! An environment has a state, an idle timeout and a count of running calls. It does not read the clock: callers pass
//! the time with every event. Only the environment's driver changes the environment; all other code works on copies.

use std::time::{Duration, Instant, SystemTime};

use waggle_images::reference::{ImageRef, PullRights};

use super::{
    egress::Policy,
    environment_id::EnvironmentId,
    lifecycle::{Event, Refusal, State},
    machine_size::MachineSize,
    principal::Principal,
    runtime::Runtime,
    variables::Variables,
};

/// Maximum number of characters of a name: enough for a sentence, and short enough for one line of a list.
pub const NAME_CHARS_MAX: usize = 64;

/// Maximum number of concurrent calls in one environment. The link to the guest allows the same number of open calls.
pub const CALLS_MAX: usize = 32;

/// The name that a client gives its environment; names need not be unique.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EnvironmentName(String);

impl EnvironmentName {
    /// Checks a name that a client sent.
    ///
    /// # Errors
    /// [`NameFault`] names the broken rule.
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

    /// Returns the default name: the runtime and the first digits of the id.
    #[must_use]
    pub fn of(runtime: Runtime, id: EnvironmentId) -> Self {
        let digits: String = id.to_string().chars().take(DEFAULT_NAME_DIGITS).collect();
        Self(format!("{runtime}-{digits}"))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The number of hexadecimal digits in the first group of an id.
const DEFAULT_NAME_DIGITS: usize = 8;

/// Why a name is invalid.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NameFault {
    /// Empty, or only white space.
    #[error("must not be blank; omit the argument to get a default name")]
    Blank,
    #[error("{chars} characters are too many; must be at most {NAME_CHARS_MAX}")]
    TooLong { chars: usize },
    #[error("must not contain control characters, such as line breaks")]
    Control,
}

/// The record of one isolated Linux machine.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Environment {
    pub id: EnvironmentId,
    pub owner: Principal,
    /// The name, for people to read.
    pub name: EnvironmentName,
    /// The default language and package manager.
    pub runtime: Runtime,
    /// The image of the root file system.
    pub image: ImageRef,
    /// The rights with which the image is pulled.
    pub pull_rights: PullRights,
    /// The size of the machine.
    pub size: MachineSize,
    /// The variables of every call.
    pub variables: Variables,
    /// The time of the request to create the environment.
    pub created_at: SystemTime,
    /// The time without a call after which the environment is destroyed, or suspended.
    pub idle_timeout: Duration,
    /// Whether the environment came back without its memory when it was last suspended.
    pub memory_lost: bool,
    state: State,
    last_activity: Instant,
    calls: usize,
}

/// The parameters of a new environment.
#[derive(Clone, Debug)]
pub struct NewEnvironment {
    pub owner: Principal,
    /// The name that the client gives; `None` for the default name.
    pub name: Option<EnvironmentName>,
    /// The default language and package manager.
    pub runtime: Runtime,
    /// The image of the root file system.
    pub image: ImageRef,
    /// The rights with which the image is pulled.
    pub pull_rights: PullRights,
    /// The size of the machine.
    pub size: MachineSize,
    /// The variables of every call.
    pub variables: Variables,
    /// The time without a call after which the environment is destroyed.
    pub idle_timeout: Duration,
    /// The environment's own network policy, which can only restrict the server's policy further.
    pub network: Option<Policy>,
}

impl Environment {
    /// Creates an environment in [`State::Creating`].
    #[must_use]
    pub fn create(id: EnvironmentId, new: NewEnvironment, created_at: SystemTime, now: Instant) -> Self {
        Self {
            id,
            owner: new.owner,
            name: new.name.unwrap_or_else(|| EnvironmentName::of(new.runtime, id)),
            runtime: new.runtime,
            image: new.image,
            pull_rights: new.pull_rights,
            size: new.size,
            variables: new.variables,
            created_at,
            idle_timeout: new.idle_timeout,
            memory_lost: false,
            state: State::Creating,
            last_activity: now,
            calls: 0,
        }
    }

    /// Restores an environment that an earlier server suspended, in [`State::Suspended`].
    #[must_use]
    pub fn suspended(id: EnvironmentId, new: NewEnvironment, created_at: SystemTime, now: Instant) -> Self {
        Self { state: State::Suspended, ..Self::create(id, new, created_at, now) }
    }

    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Applies an event to the state.
    ///
    /// # Errors
    /// [`Refusal`] if the event does not fit the state; the state then stays the same.
    pub fn apply(&mut self, event: Event, now: Instant) -> Result<State, Refusal> {
        self.state = self.state.after(event)?;
        self.last_activity = now;
        Ok(self.state)
    }

    /// Adds a call to the count of running calls.
    ///
    /// # Errors
    /// [`CallRefusal`] if the environment is not running, or has [`CALLS_MAX`] calls.
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

    /// Returns the number of running calls.
    #[must_use]
    pub fn calls(&self) -> usize {
        self.calls
    }

    /// Starts the idle timeout again.
    pub fn touch(&mut self, now: Instant) {
        self.last_activity = now;
    }

    /// Removes a call that ended, successfully or not, from the count of running calls.
    pub fn end_call(&mut self, now: Instant) {
        self.calls = self.calls.saturating_sub(1);
        self.last_activity = now;
    }

    /// Returns the time at which the environment reaches its idle timeout. `None` while a call runs, and in all states
    /// other than running, error and suspended.
    #[must_use]
    pub fn idle_deadline(&self) -> Option<Instant> {
        match self.state {
            State::Running | State::Error | State::Suspended if self.calls == 0 => {
                self.last_activity.checked_add(self.idle_timeout)
            }
            State::Running | State::Error | State::Suspended => None,
            State::Creating | State::Suspending | State::Resuming | State::Destroying | State::Destroyed => None,
        }
    }
}

/// Why a call cannot begin.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CallRefusal {
    /// The environment is not in [`State::Running`].
    NotRunning { state: State },
    /// [`CALLS_MAX`] calls are running.
    Busy,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(now: Instant) -> Environment {
        let new = NewEnvironment {
            owner: Principal::anonymous(),
            name: None,
            runtime: Runtime::Python,
            image: "python".parse().unwrap(),
            pull_rights: PullRights::Operator,
            size: MachineSize { cpus: 1, memory_mib: 512, disk_mib: 4096 },
            variables: Variables::default(),
            idle_timeout: Duration::from_secs(60),
            network: None,
        };
        Environment::create(EnvironmentId::random(), new, SystemTime::UNIX_EPOCH, now)
    }

    #[test]
    fn default_name_has_the_runtime_and_id() {
        let environment = environment(Instant::now());
        let digits = &environment.id.to_string()[..8];
        assert_eq!(environment.name.as_str(), format!("python-{digits}"));
    }

    #[test]
    fn running_call_keeps_its_environment_alive() {
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
    fn calls_need_a_running_environment_and_are_limited() {
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
    fn refused_event_changes_nothing() {
        let now = Instant::now();
        let mut environment = environment(now);
        let before = environment.clone();
        assert_eq!(environment.apply(Event::Released, now), Err(Refusal::NotBeingDestroyed));
        assert_eq!(environment, before);
    }

    #[test]
    fn rejects_invalid_names() {
        assert_eq!(EnvironmentName::parse("my data ä").unwrap().as_str(), "my data ä");
        assert_eq!(EnvironmentName::parse("  "), Err(NameFault::Blank));
        assert_eq!(EnvironmentName::parse("a\nb"), Err(NameFault::Control));
        assert_eq!(EnvironmentName::parse(&"ä".repeat(65)), Err(NameFault::TooLong { chars: 65 }));
        assert_eq!(EnvironmentName::parse(&"ä".repeat(64)).unwrap().as_str().len(), 128);
    }
}
