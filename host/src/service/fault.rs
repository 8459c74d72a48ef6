// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Failures of requests: faults that the caller can fix, and failures of the server.

mod argument;

use std::{fmt, time::Duration};

pub use self::argument::ArgumentFault;
use crate::domain::{
    call_fault::{CallFault, RefusalKind},
    command::Executed,
    environment::CALLS_MAX,
    environment_id::EnvironmentId,
    lifecycle::State,
    machine::StartFault,
    repository::{CapacityFault, DestroyReason},
    runtime::RuntimeFault,
    start_reason::StartReason,
};
use crate::error_code::ErrorCode;

/// A failed request.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The caller can fix the fault.
    #[error(transparent)]
    Caller(#[from] CallerFault),
    /// Only the operator can fix the fault.
    #[error(transparent)]
    Server(#[from] ServerFault),
}

/// A fault that the caller can fix. Each text says what is wrong and what would be right.
#[derive(Debug, thiserror::Error)]
pub enum CallerFault {
    /// An invalid argument.
    #[error("{0}")]
    Argument(ArgumentFault),
    /// The caller has no environment with this id.
    #[error(
        "environment {id} not found; list_environments returns the ids of your environments{}",
        when_local(*is_local)
    )]
    UnknownEnvironment {
        id: EnvironmentId,
        /// Whether the caller started the server.
        is_local: bool,
    },
    /// The environment was destroyed before the call.
    #[error("environment {id} has been destroyed{}; create a new one with create_environment", because(*reason))]
    DestroyedEnvironment { id: EnvironmentId, reason: DestroyReason },
    /// The environment was destroyed during the call.
    #[error(
        "environment {id} was destroyed during the call, and every process of the call was killed; create a new one \
         with create_environment"
    )]
    DestroyedUnderCall { id: EnvironmentId },
    /// The environment accepts no calls.
    #[error("environment {id} is not running: {}", hint(*state))]
    NotRunning { id: EnvironmentId, state: State },
    /// All slots for environments are taken.
    #[error(transparent)]
    Capacity(#[from] CapacityFault),
    /// The environment runs its maximum of calls, and none of them ended in time.
    #[error(
        "environment {id} has its maximum of {CALLS_MAX} running calls, and none ended within {} s; retry when one has \
         ended",
        waited.as_secs_f64()
    )]
    Busy { id: EnvironmentId, waited: Duration },
    /// The caller, or the server, has reached its limit of calls.
    #[error("{whose} reached the maximum of {calls_max} running calls; retry when one has ended")]
    TooManyCalls {
        /// The start of the message: "you have" or "the server has".
        whose: &'static str,
        calls_max: usize,
    },
    /// Unread results of other calls fill the buffer.
    #[error("too many unread results are buffered; read them or retry")]
    ResultsUnread,
    /// The image lacks an interpreter or a package manager.
    #[error(transparent)]
    Runtime(RuntimeFault),
    /// A command reached its timeout.
    #[error("the call reached its timeout of {} s, and all its processes were killed", after.as_secs_f64())]
    TimedOut {
        after: Duration,
        /// The result, with the output up to the timeout.
        executed: Box<Executed>,
    },
    /// The caller cancelled the call.
    #[error("the call was cancelled, and all its processes were killed")]
    Cancelled {
        /// The result of the command, with the output up to the cancellation; `None` if no command had started.
        executed: Option<Box<Executed>>,
    },
    /// The caller cancelled an installation.
    #[error("the installation was cancelled{rest}")]
    InstallationCancelled { rest: RestOfInstallation },
    /// An installation reached its timeout before the one that it waited for had ended.
    #[error(
        "the call reached its timeout of {} s while it waited for another installation in the environment; nothing was \
         installed; retry when it has ended",
        after.as_secs_f64()
    )]
    InstallationWaited { after: Duration },
    /// The guest's kernel or the agent refused the call.
    #[error("{message}")]
    Guest { kind: RefusalKind, message: String },
    /// The server is shutting down.
    #[error("the server is shutting down; retry when it is back")]
    ShuttingDown,
}

/// The end of an installation whose caller has cancelled it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RestOfInstallation {
    /// Nothing, because it had not begun.
    Nothing,
    /// It is killed.
    Killed,
    /// It continues, because a kill would leave half-installed system packages.
    Finishes {
        /// Maximum time for which it continues.
        within: Duration,
    },
}

impl fmt::Display for RestOfInstallation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str(" before it began; nothing was installed"),
            Self::Killed => f.write_str("; it is being killed, and the next installation waits for that"),
            Self::Finishes { within } => {
                let within = within.as_secs();
                write!(
                    f,
                    "; its package manager gets {within} s at most to finish, and the next installation waits for it"
                )
            }
        }
    }
}

impl CallerFault {
    /// Returns the code for programs.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Argument(_) => ErrorCode::InvalidArgument,
            Self::UnknownEnvironment { .. } => ErrorCode::EnvironmentNotFound,
            Self::DestroyedEnvironment { .. } | Self::DestroyedUnderCall { .. } => ErrorCode::EnvironmentDestroyed,
            Self::NotRunning { .. } => ErrorCode::EnvironmentNotRunning,
            Self::Capacity(CapacityFault::Server { .. }) => ErrorCode::CapacityReached,
            Self::Capacity(CapacityFault::Share { .. }) => ErrorCode::CallerCapacityReached,
            Self::Busy { .. } => ErrorCode::EnvironmentBusy,
            Self::TooManyCalls { .. } => ErrorCode::TooManyCalls,
            Self::ResultsUnread => ErrorCode::ResultsUnread,
            Self::Runtime(_) => ErrorCode::RuntimeUnavailable,
            Self::TimedOut { .. } | Self::InstallationWaited { .. } => ErrorCode::TimedOut,
            Self::Cancelled { .. } | Self::InstallationCancelled { .. } => ErrorCode::Cancelled,
            Self::Guest { kind, .. } => refusal_code(*kind),
            Self::ShuttingDown => ErrorCode::ShuttingDown,
        }
    }

    /// Whether the message says what the caller can do, so that the code's hint adds nothing.
    #[must_use]
    pub fn has_advice(&self) -> bool {
        match self {
            Self::Runtime(_) | Self::TimedOut { .. } | Self::Guest { .. } => false,
            Self::Argument(_)
            | Self::UnknownEnvironment { .. }
            | Self::DestroyedEnvironment { .. }
            | Self::DestroyedUnderCall { .. }
            | Self::NotRunning { .. }
            | Self::Capacity(_)
            | Self::Busy { .. }
            | Self::TooManyCalls { .. }
            | Self::ResultsUnread
            | Self::Cancelled { .. }
            | Self::InstallationCancelled { .. }
            | Self::InstallationWaited { .. }
            | Self::ShuttingDown => true,
        }
    }

    /// Returns the result of the stopped command, if there was one.
    #[must_use]
    pub fn executed(&self) -> Option<&Executed> {
        if let Self::TimedOut { executed, .. } = self {
            return Some(executed);
        }
        if let Self::Cancelled { executed } = self { executed.as_deref() } else { None }
    }
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
        DestroyReason::Idle => " because it reached its idle timeout",
        DestroyReason::NeverReady => " before it was ready",
        DestroyReason::Failed => " because its machine failed",
        DestroyReason::Shutdown => " because the server is shutting down",
    }
}

/// Returns the likely reason why the caller of a server that it started itself has no such environment.
fn when_local(is_local: bool) -> &'static str {
    if is_local {
        ". Environments end with the server; if the client starts a server for each call, connect it over HTTP instead"
    } else {
        ""
    }
}

fn hint(state: State) -> &'static str {
    match state {
        State::Creating => "it is being created; wait until list_environments shows it as running",
        State::Running => "it has just started; retry",
        State::Destroying | State::Destroyed => "it is being destroyed; create a new one with create_environment",
        State::Error => "its machine failed; destroy it and create a new one",
    }
}

/// A fault that only the operator can fix.
#[derive(Debug, thiserror::Error)]
pub enum ServerFault {
    /// The machine did not start.
    #[error("failed to create environment {id}")]
    Start {
        id: EnvironmentId,
        /// The stage that failed, with the cause.
        source: Box<StartFault>,
    },
    /// The guest's agent broke the protocol.
    #[error("failed to {operation} in environment {id}")]
    Call {
        /// The operation, for example "run the code".
        operation: &'static str,
        id: EnvironmentId,
        source: CallFault,
    },
    /// The task that owns the environment ended without an answer, which is a defect.
    #[error("failed to reach the task that owns environment {id}")]
    Unowned { id: EnvironmentId },
}

impl ServerFault {
    /// Returns the text for the client. Unlike the fault and its causes, which are for the log, it contains no path of
    /// the host, and no text of an image or a registry.
    #[must_use]
    pub fn for_client(&self) -> String {
        match self {
            Self::Start { source, .. } => {
                format!("{self}: {}; the server's log has the details, with this id", source.for_client())
            }
            Self::Call { .. } => {
                format!("{self}: the guest agent broke the protocol; the server's log has the details")
            }
            Self::Unowned { .. } => self.to_string(),
        }
    }

    /// Returns the code for programs.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Start { source, .. } if matches!(source.reason, StartReason::LowDisk(_)) => ErrorCode::HostDiskLow,
            Self::Start { .. } => ErrorCode::StartFailed,
            Self::Call { .. } => ErrorCode::MachineFailed,
            Self::Unowned { .. } => ErrorCode::Internal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_of_a_cancelled_installation_says_what_happens_to_it() {
        let text = |rest| CallerFault::InstallationCancelled { rest }.to_string();
        assert!(text(RestOfInstallation::Nothing).ends_with("before it began; nothing was installed"));
        assert!(text(RestOfInstallation::Killed).contains("is being killed"));
        let within = Duration::from_secs(60);
        assert!(text(RestOfInstallation::Finishes { within }).contains("gets 60 s at most to finish"));
    }

    #[test]
    fn error_of_an_installation_that_only_waited_gives_advice() {
        let text = CallerFault::InstallationWaited { after: Duration::from_secs(300) }.to_string();
        assert!(text.contains("300 s while it waited") && text.ends_with("; retry when it has ended"), "{text}");
    }
}
