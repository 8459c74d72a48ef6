// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Why a service did not do what it was asked: for a reason that the caller can mend, or because the server failed.

use std::time::Duration;

use super::execution::Executed;
use crate::domain::{
    egress::PolicyFault,
    environment::{CALLS_MAX, EnvironmentId, EnvironmentIdFault, NameFault},
    guest_path::GuestPathFault,
    lifecycle::State,
    package_name::PackagesFault,
    ports::{CallFault, RefusalKind, StartFault},
    repository::{CapacityFault, DestroyReason},
    runtime::RuntimeFault,
    variables::VariablesFault,
};
use crate::error_code::ErrorCode;

/// A request that was not fulfilled.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The caller can do something about it.
    #[error(transparent)]
    Caller(#[from] CallerFault),
    /// Only the operator can.
    #[error(transparent)]
    Server(#[from] ServerFault),
}

/// What the caller can mend. Each text says what was wrong and what would be right.
#[derive(Debug, thiserror::Error)]
pub enum CallerFault {
    /// An argument breaks a rule.
    #[error("{0}")]
    Argument(ArgumentFault),
    /// No such environment, at least none of this caller.
    #[error("there is no environment {id}; list_environments tells which there are")]
    UnknownEnvironment {
        /// The id that was asked for.
        id: EnvironmentId,
    },
    /// There was one.
    #[error("environment {id} has been destroyed{}; create a new one with create_environment", because(*reason))]
    DestroyedEnvironment {
        /// The id that was asked for.
        id: EnvironmentId,
        /// Why it went.
        reason: DestroyReason,
    },
    /// It went while the call ran.
    #[error(
        "environment {id} was destroyed while the call ran, and all that the call had started ended with it; create a new \
         one with create_environment"
    )]
    DestroyedUnderCall {
        /// The id that was asked for.
        id: EnvironmentId,
    },
    /// There is one, but it takes no calls.
    #[error("environment {id} is not running: {}", hint(*state))]
    NotRunning {
        /// The id that was asked for.
        id: EnvironmentId,
        /// Where it stands.
        state: State,
    },
    /// There is no room for another one.
    #[error(transparent)]
    Capacity(#[from] CapacityFault),
    /// It has enough to do.
    #[error("environment {id} has {CALLS_MAX} calls running already; wait until one has ended")]
    Busy {
        /// The id that was asked for.
        id: EnvironmentId,
    },
    /// The caller, or the server, has enough to do.
    #[error("{whose} {calls_max} calls running already; wait until one has ended")]
    TooManyCalls {
        /// Who has them.
        whose: &'static str,
        /// As many as there may be.
        calls_max: usize,
    },
    /// The answers of other calls take all the room.
    #[error("there is no room for the result, as too many others are still being read; read them, or call again")]
    ResultsUnread,
    /// Its image lacks what was asked for.
    #[error(transparent)]
    Runtime(RuntimeFault),
    /// A command took too long.
    #[error(
        "the time-out of {} s has passed, and everything that the call had started was stopped{executed}",
        after.as_secs_f64()
    )]
    TimedOut {
        /// The time-out.
        after: Duration,
        /// How it ended, and what it had written until then.
        executed: Box<Executed>,
    },
    /// The caller cancelled the call.
    #[error("the call was cancelled, and everything that it had started was stopped{}", so_far(executed.as_deref()))]
    Cancelled {
        /// If it ran a command: how that ended, and what it had written until then.
        executed: Option<Box<Executed>>,
    },
    /// The guest's kernel, or the agent, said no.
    #[error("{message}")]
    Guest {
        /// What kind of no.
        kind: RefusalKind,
        /// The agent's sentence.
        message: String,
    },
    /// The server is on its way out.
    #[error("the server is shutting down and takes no new calls")]
    ShuttingDown,
}

impl CallerFault {
    /// The kind of fault, for programs.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Argument(_) => ErrorCode::InvalidArgument,
            Self::UnknownEnvironment { .. } => ErrorCode::EnvironmentNotFound,
            Self::DestroyedEnvironment { .. } | Self::DestroyedUnderCall { .. } => ErrorCode::EnvironmentDestroyed,
            Self::NotRunning { .. } => ErrorCode::EnvironmentNotRunning,
            Self::Capacity(_) => ErrorCode::CapacityReached,
            Self::Busy { .. } => ErrorCode::EnvironmentBusy,
            Self::TooManyCalls { .. } => ErrorCode::TooManyCalls,
            Self::ResultsUnread => ErrorCode::ResultsUnread,
            Self::Runtime(_) => ErrorCode::RuntimeUnavailable,
            Self::TimedOut { .. } => ErrorCode::TimedOut,
            Self::Cancelled { .. } => ErrorCode::Cancelled,
            Self::Guest { kind, .. } => refusal_code(*kind),
            Self::ShuttingDown => ErrorCode::ShuttingDown,
        }
    }

    /// The command that was stopped, if one was.
    #[must_use]
    pub fn executed(&self) -> Option<&Executed> {
        match self {
            Self::TimedOut { executed, .. } => Some(executed),
            Self::Cancelled { executed } => executed.as_deref(),
            Self::Argument(_)
            | Self::UnknownEnvironment { .. }
            | Self::DestroyedEnvironment { .. }
            | Self::DestroyedUnderCall { .. }
            | Self::NotRunning { .. }
            | Self::Capacity(_)
            | Self::Busy { .. }
            | Self::TooManyCalls { .. }
            | Self::ResultsUnread
            | Self::Runtime(_)
            | Self::Guest { .. }
            | Self::ShuttingDown => None,
        }
    }
}

fn so_far(executed: Option<&Executed>) -> String {
    executed.map(ToString::to_string).unwrap_or_default()
}

fn refusal_code(kind: RefusalKind) -> ErrorCode {
    match kind {
        RefusalKind::NotFound => ErrorCode::NotFound,
        RefusalKind::IsDirectory => ErrorCode::IsADirectory,
        RefusalKind::NotDirectory => ErrorCode::NotADirectory,
        RefusalKind::NotRegular => ErrorCode::NotARegularFile,
        RefusalKind::Denied => ErrorCode::PermissionDenied,
        RefusalKind::TooLarge => ErrorCode::TooLarge,
        RefusalKind::NoSpace => ErrorCode::NoSpace,
        RefusalKind::ReadOnly => ErrorCode::ReadOnly,
        RefusalKind::InvalidPath => ErrorCode::InvalidPath,
        RefusalKind::Busy => ErrorCode::GuestBusy,
        RefusalKind::Other => ErrorCode::GuestRefused,
    }
}

fn because(reason: DestroyReason) -> &'static str {
    match reason {
        DestroyReason::Requested => "",
        DestroyReason::Idle => " because nobody had used it for its idle time-out",
        DestroyReason::NeverReady => " before it was ready",
        DestroyReason::Failed => " because its machine had failed",
        DestroyReason::Shutdown => " because the server is shutting down",
    }
}

fn hint(state: State) -> &'static str {
    match state {
        State::Creating => "it is still being created; wait until list_environments says running",
        State::Running => "it has only just started; try again",
        State::Destroying | State::Destroyed => "it is being destroyed; create a new one with create_environment",
        State::Error => "its machine has failed; destroy it and create a new one",
    }
}

/// An argument that breaks a rule.
#[derive(Debug, thiserror::Error)]
pub enum ArgumentFault {
    /// An id that is none.
    #[error("environment_id: {0}")]
    Id(EnvironmentIdFault),
    /// A network policy that is none.
    #[error("network: {0}")]
    Network(PolicyFault),
    /// A name that is none.
    #[error("name: {0}")]
    Name(NameFault),
    /// A path that is none.
    #[error("{name}: {source}")]
    Path {
        /// The argument.
        name: &'static str,
        /// What is wrong with it.
        source: GuestPathFault,
    },
    /// Variables that are none.
    #[error("environment: {0}")]
    Variables(VariablesFault),
    /// Packages that are none.
    #[error("packages: {0}")]
    Packages(PackagesFault),
    /// A number out of its range.
    #[error("{name}: {value} is too much; the maximum is {max}")]
    AboveMaximum {
        /// The argument.
        name: &'static str,
        /// What it was.
        value: f64,
        /// What it may be.
        max: f64,
    },
    /// A number that is no whole one in its range.
    #[error("{name}: {value} does not do; give a whole number from {min} to {max}")]
    NotWhole {
        /// The argument.
        name: &'static str,
        /// What it was.
        value: f64,
        /// The least that it may be.
        min: u64,
        /// The most that it may be.
        max: u64,
    },
    /// Permissions that are none.
    #[error("mode: that is no file mode; give up to four octal digits in quotes, such as \"0644\" or \"0755\"")]
    Mode,
    /// Base64 that is none.
    #[error("content: that is no base64: {reason}; leave encoding out for text")]
    Base64 {
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing to run.
    #[error("code: there is none; give the program text to run")]
    NoCode,
    /// Too much in one piece.
    #[error("{name}: {bytes} bytes are too many; the maximum for one call is {bytes_max}{}", advice)]
    TooLarge {
        /// The argument.
        name: &'static str,
        /// Its size.
        bytes: usize,
        /// What it may be.
        bytes_max: usize,
        /// What to do instead.
        advice: &'static str,
    },
}

impl From<ArgumentFault> for CallerFault {
    fn from(fault: ArgumentFault) -> Self {
        Self::Argument(fault)
    }
}

impl From<ArgumentFault> for Fault {
    fn from(fault: ArgumentFault) -> Self {
        Self::Caller(CallerFault::Argument(fault))
    }
}

/// What only the operator can mend.
#[derive(Debug, thiserror::Error)]
pub enum ServerFault {
    /// The machine could not be started.
    #[error("failed to create environment {id}")]
    Start {
        /// The environment that it was for.
        id: EnvironmentId,
        /// The stage and its cause.
        source: StartFault,
    },
    /// The guest's agent broke the protocol, or the link to it.
    #[error("failed to {operation} in environment {id}")]
    Call {
        /// What was tried.
        operation: &'static str,
        /// Where.
        id: EnvironmentId,
        /// What happened.
        source: CallFault,
    },
    /// The task that owns the environment is gone without a word: a defect.
    #[error("failed to reach the task that owns environment {id}")]
    Unowned {
        /// Which environment.
        id: EnvironmentId,
    },
}

impl ServerFault {
    /// The kind of fault, for programs.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Start { .. } => ErrorCode::StartFailed,
            Self::Call { .. } => ErrorCode::MachineFailed,
            Self::Unowned { .. } => ErrorCode::Internal,
        }
    }
}
