// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Failures of requests: faults that the caller can fix, and failures of the server.

mod argument;
mod resume;

use std::{fmt, sync::Arc, time::Duration};

pub use self::{argument::ArgumentFault, resume::ResumeFault};
use crate::domain::{
    call_fault::{CallFault, RefusalKind},
    command::Executed,
    environment::CALLS_MAX,
    environment_id::EnvironmentId,
    lifecycle::State,
    machine::{SnapshotFault, StartFault},
    repository::{CapacityFault, DestroyReason},
    runtime::RuntimeFault,
    saved::SavedName,
    start_reason::StartReason,
};
use crate::{
    error_code::ErrorCode,
    saved::{SaveFault, StoreFault},
};

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

impl Fault {
    /// Returns the fault of an environment that could not be saved. Faults of the host's files are for the operator.
    pub(super) fn of_saving(id: EnvironmentId, source: SaveFault) -> Self {
        let (code, source) = (source.code(), Box::new(source));
        match code == ErrorCode::Internal {
            true => ServerFault::Save { id, source, restarts: false }.into(),
            false => CallerFault::Save { id, source, restarts: false }.into(),
        }
    }

    /// Returns the fault of an environment whose machine has ended and starts again from the snapshot.
    pub(super) fn after_the_machine(mut self) -> Self {
        if let Self::Caller(CallerFault::Save { restarts, .. })
        | Self::Server(ServerFault::Save { restarts, .. } | ServerFault::Snapshot { restarts, .. }) = &mut self
        {
            *restarts = true;
        }
        self
    }

    /// Returns the code for programs.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Caller(fault) => fault.code(),
            Self::Server(fault) => fault.code(),
        }
    }

    /// Returns the text for the client.
    #[must_use]
    pub fn for_client(&self) -> String {
        match self {
            Self::Caller(fault) => fault.to_string(),
            Self::Server(fault) => fault.for_client(),
        }
    }
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
    #[error("environment {id} {}; create a new one with create_environment", end(*reason))]
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
    /// The environment cannot be forked while calls run in it.
    #[error(
        "environment {id} runs {calls} calls, and can be forked only while it runs none; retry when they have ended, \
         or set wait: true to wait for them"
    )]
    ForkDuringCalls { id: EnvironmentId, calls: usize },
    /// The calls in the source of a fork did not end in time.
    #[error(
        "environment {id} could not be forked, because calls ran in it for all of the {} s that this call waited; \
         retry when they have ended",
        waited.as_secs_f64()
    )]
    ForkWaited { id: EnvironmentId, waited: Duration },
    /// The environment cannot be saved while calls run in it.
    #[error(
        "environment {id} runs {calls} calls, and can be saved only while it runs none; it was not destroyed; retry \
         when they have ended"
    )]
    SaveDuringCalls { id: EnvironmentId, calls: usize },
    /// The caller has no saved environment with this name.
    #[error(
        "saved environment {:?} not found; list_environments returns the names of your saved environments",
        name.as_str()
    )]
    UnknownSaved { name: SavedName },
    /// The server, or the back end of its machines, saves nothing.
    #[error("environments of this server cannot be forked, saved or suspended: {why}")]
    CannotSave { why: String },
    /// A limit of the saved environments, or the disk.
    #[error("failed to save environment {id}, which was not destroyed{}: {source}", restart(*restarts))]
    Save {
        id: EnvironmentId,
        source: Box<SaveFault>,
        /// Whether the machine has ended, and starts again from its snapshot.
        restarts: bool,
    },
    /// The store of saved environments is not available.
    #[error("{0}")]
    Store(StoreFault),
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
            Self::ForkDuringCalls { .. } | Self::ForkWaited { .. } | Self::SaveDuringCalls { .. } => {
                ErrorCode::CallsRunning
            }
            Self::UnknownSaved { .. } => ErrorCode::SavedNotFound,
            Self::CannotSave { .. } => ErrorCode::SavingUnavailable,
            Self::Save { source, .. } => source.code(),
            Self::Store(source) => source.code(),
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
            Self::CannotSave { .. } | Self::Save { .. } | Self::Store(_) => false,
            Self::Argument(_)
            | Self::UnknownEnvironment { .. }
            | Self::DestroyedEnvironment { .. }
            | Self::DestroyedUnderCall { .. }
            | Self::NotRunning { .. }
            | Self::ForkDuringCalls { .. }
            | Self::ForkWaited { .. }
            | Self::SaveDuringCalls { .. }
            | Self::UnknownSaved { .. }
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

fn end(reason: DestroyReason) -> &'static str {
    match reason {
        DestroyReason::Requested => "has been destroyed",
        DestroyReason::Idle => "has been destroyed because it reached its idle timeout",
        DestroyReason::NeverReady => "has been destroyed before it was ready",
        DestroyReason::Failed => "has been destroyed because its machine failed",
        DestroyReason::Shutdown => "has been destroyed because the server is shutting down",
        DestroyReason::Suspended => "is suspended until the server is back",
        DestroyReason::Unsuspended => "was lost when the server stopped, because it could not be suspended",
        DestroyReason::Lost => "was lost when the server ended unexpectedly",
        DestroyReason::Expired => "has been destroyed because it was suspended for too long",
    }
}

/// Returns what happens to an environment that could not be saved after its machine had ended.
fn restart(restarts: bool) -> &'static str {
    match restarts {
        true => {
            ", but starts again from the moment of the save (if its programs have ended, the next result says memory: \
             false)"
        }
        false => "",
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
        State::Suspending | State::Suspended | State::Resuming => "it is suspended, and comes back at a call; retry",
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
    /// The machine could not be saved. The environment still exists.
    #[error("failed to {operation} environment {id}")]
    Snapshot {
        /// The operation, for example "fork".
        operation: &'static str,
        id: EnvironmentId,
        source: Arc<SnapshotFault>,
        /// Whether the machine has ended, and starts again from its snapshot.
        restarts: bool,
    },
    /// The store of saved machines failed. The environment still exists.
    #[error("failed to save environment {id}")]
    Save {
        id: EnvironmentId,
        source: Box<SaveFault>,
        /// Whether the machine has ended, and starts again from its snapshot.
        restarts: bool,
    },
    /// A suspended environment did not come back, and stays suspended.
    #[error("failed to bring back environment {id}")]
    Resume { id: EnvironmentId, source: Arc<ResumeFault> },
    /// The saved state of a suspended environment could not be removed.
    #[error("failed to destroy environment {id}, which stays suspended")]
    Destroy { id: EnvironmentId, source: Arc<StoreFault> },
    /// A saved environment could not be read.
    #[error("failed to bring back the saved environment {:?}", name.as_str())]
    Restore { name: SavedName, source: Box<ResumeFault> },
    /// A saved environment could not be removed.
    #[error("failed to remove the saved environment {:?}", name.as_str())]
    Remove { name: SavedName, source: Box<StoreFault> },
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
            Self::Snapshot { restarts: true, .. } | Self::Save { restarts: true, .. } => {
                format!("{self}, which was not destroyed{}; the server's log has the details", restart(true))
            }
            Self::Snapshot { .. } | Self::Save { .. } => {
                format!("{self}, which goes on unchanged; the server's log has the details")
            }
            Self::Resume { source, .. } if source.code() == ErrorCode::SavedDamaged => {
                format!("{self}: {}; it stays suspended, but can only be destroyed", source.for_client())
            }
            Self::Restore { source, .. } if source.code() == ErrorCode::SavedDamaged => {
                format!("{self}: {}; it can no longer be used or listed", source.for_client())
            }
            Self::Resume { source, .. } => {
                format!("{self}: {}; its saved state is kept; the server's log has the details", source.for_client())
            }
            Self::Restore { source, .. } => {
                format!("{self}: {}; the server's log has the details", source.for_client())
            }
            Self::Remove { .. } | Self::Destroy { .. } => format!("{self}; the server's log has the details"),
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
            Self::Snapshot { .. } | Self::Save { .. } => ErrorCode::SaveFailed,
            Self::Remove { .. } | Self::Destroy { .. } => ErrorCode::SaveFailed,
            Self::Resume { source, .. } => source.code(),
            Self::Restore { source, .. } => source.code(),
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
