// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Installs packages in environments, one installation of an environment at a time.
//!
//! ```text
//!   wait for the queue ──turn──▶ step ──succeeded──▶ step ... ──▶ result
//!          │                      │
//!          │ cancelled, timeout   ├─timeout: killed; the next installation repairs what is left
//!          ▼                      └─cancelled, or the caller left: the caller is answered at once
//!        fault                        ├─a step that may be killed: killed; the next installation repairs
//!                                     └─a step that changes the system's packages: continues for a while
//! ```
//!
//! An installation runs in a task of its own, because it may outlive its caller. The task holds the environment's queue
//! and its call. It ends at the latest when the machine ends.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::OwnedMutexGuard,
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::{Execution, Outputs, Watcher};
use crate::{
    domain::{
        command::{Command, EndCause, Executed, OutputStream},
        environment_id::EnvironmentId,
        guest_path::GuestPath,
        package_name::{PackageName, parse_packages},
        principal::Principal,
        runtime::{Installer, Packages, Runtime, Step},
    },
    service::{
        fault::{ArgumentFault, CallerFault, Fault},
        request::Call,
    },
};

/// Maximum time for which an installation continues after its cancellation. Package managers unpack and configure what
/// they have downloaded within this time, unless it is very large; then the next installation repairs it. A client that
/// retries waits for so long at most.
const FINISH_WITHIN: Duration = Duration::from_secs(60);

/// Minimum time in the queue that the error of a timeout mentions.
const WAIT_WORTH_TELLING: Duration = Duration::from_millis(500);

const OPERATION: &str = "install the packages";

/// The hint for packages that could not be built. The first parts are what compilers and build tools report.
const BUILD_HINT: &str = "the image lacks a program or a library that the packages are built with; install it with \
                          install_packages and system: true (in Debian for example build-essential, python3-dev or \
                          libpq-dev), then retry";
const BUILD_FAILURES: &[&str] = &[
    "gcc' failed: No such file or directory",
    "g++' failed: No such file or directory",
    "cc' failed: No such file or directory",
    "pg_config executable not found",
    "mysql_config: not found",
    ".h: No such file or directory",
    "Unknown compiler(s)",
    "gyp ERR! find Python",
    "not found: make",
    "make: not found",
    "g++: not found",
];

/// The packages that a caller wants.
#[derive(Clone, Copy, Debug)]
pub struct PackageRequest<'a> {
    /// The caller's list of names.
    pub packages: &'a str,
    /// Whether they are packages of the image's own package manager, and not of the runtime's.
    pub system: bool,
}

/// The caller that waits for an installation.
pub struct InstallationWatcher<'a> {
    /// Cancelled when the caller stops waiting.
    pub cancelled: &'a CancellationToken,
    /// Called with the output as it arrives, while the caller waits. It must not block.
    pub on_output: Box<OnOutput>,
}

type OnOutput = dyn Fn(OutputStream, &[u8]) + Send + Sync;

impl std::fmt::Debug for InstallationWatcher<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InstallationWatcher").field("cancelled", &self.cancelled).finish_non_exhaustive()
    }
}

impl Execution {
    /// Installs packages with the package manager of the environment's runtime, or of the image. Installations in one
    /// environment wait for each other, within their own timeout.
    ///
    /// # Errors
    /// The errors of [`Execution::execute`], [`CallerFault::InstallationCancelled`] and
    /// [`CallerFault::InstallationWaited`]. A failure of the package manager is a result.
    pub async fn install_packages(
        &self,
        owner: &Principal,
        id: EnvironmentId,
        request: PackageRequest<'_>,
        watcher: InstallationWatcher<'_>,
    ) -> Result<Executed, Fault> {
        let packages = parse_packages(request.packages).map_err(ArgumentFault::Packages)?;
        let (begun, timeout) = (Instant::now(), self.rules.install_timeout);
        let waiting = Watcher { cancelled: watcher.cancelled, on_output: &|_, _| {} };
        let call = self.begin(owner, id, timeout, waiting).await?;
        let kind = if request.system { Packages::System } else { Packages::Runtime(call.environment.runtime) };
        let operator = self.rules.commands.of(kind.runtime()).install.as_ref();
        let installer = kind.installer(operator, call.machine.agent().capabilities()).map_err(CallerFault::Runtime)?;
        let cancelled = || CallerFault::InstallationCancelled { finish_within: FINISH_WITHIN };
        let turn = Arc::clone(&call.installations).lock_owned();
        let turn = tokio::select! {
            biased;
            () = watcher.cancelled.cancelled() => return Err(cancelled().into()),
            turn = timeout_at(begun + timeout, turn) => turn,
        };
        let turn = turn.map_err(|_elapsed| CallerFault::InstallationWaited { after: timeout })?;
        let left = CancellationToken::new();
        let installation = Installation {
            execution: self.clone(),
            owner: owner.clone(),
            call,
            kind,
            begun,
            left: left.clone(),
            on_output: watcher.on_output,
        };
        let running = self.environments.spawn(installation.run(installer, packages, turn).in_current_span());
        // Also cancelled if the caller drops this future.
        let _leaving = left.drop_guard();
        tokio::select! {
            ended = running => match ended {
                Ok(ended) => ended,
                Err(fault) => match fault.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(_aborted) => Err(CallerFault::ShuttingDown.into()),
                },
            },
            () = watcher.cancelled.cancelled() => Err(cancelled().into()),
        }
    }
}

/// An installation that runs.
struct Installation {
    execution: Execution,
    owner: Principal,
    call: Call,
    kind: Packages,
    /// The time of the request.
    begun: Instant,
    /// Cancelled when the caller has cancelled the call or left.
    left: CancellationToken,
    on_output: Box<OnOutput>,
}

impl Installation {
    /// Runs the steps. `turn` is the environment's queue.
    async fn run(
        self,
        installer: Installer,
        packages: Vec<PackageName>,
        mut turn: OwnedMutexGuard<Option<Instant>>,
    ) -> Result<Executed, Fault> {
        let rules = &self.execution.rules;
        let start = Instant::now();
        let killed = *turn;
        let steps = installer.steps(&packages, killed.map(|start| start.elapsed()));
        // Until it has ended by itself, the installation counts as killed.
        *turn = killed.or(Some(start));
        let mut outputs = Outputs::new(&self.call.refusals, rules.output_bytes_default);
        let mut last = None;
        for step in steps {
            if last.is_some() {
                outputs.begin_step(rules.output_bytes_default);
            }
            let executed = self.step(step, &mut outputs).await?;
            let has_succeeded = has_ended(&executed) && executed.exit_code == 0;
            last = Some(executed);
            if !has_succeeded {
                break;
            }
        }
        let executed = last.ok_or(CallerFault::ShuttingDown)?;
        // The repair of the image's own packages may need a network. It is repeated until an installation succeeds.
        let is_repaired = executed.exit_code == 0 || killed.is_none() || !self.is_of_system();
        if has_ended(&executed) && is_repaired {
            *turn = None;
        }
        let executed = Executed { duration: start.elapsed(), ..executed };
        let hint = self.hint(&executed, &outputs, start - self.begun);
        match outputs.into_result(executed, rules.install_timeout) {
            Ok(executed) => Ok(with_hint(executed, hint)),
            Err(Fault::Caller(CallerFault::TimedOut { after, executed })) => {
                Err(CallerFault::TimedOut { after, executed: Box::new(with_hint(*executed, hint)) }.into())
            }
            Err(fault) => Err(fault),
        }
    }

    /// Runs one step. If the caller has left, kills it, at once or after a while.
    async fn step(&self, step: Step, outputs: &mut Outputs) -> Result<Executed, Fault> {
        let rules = &self.execution.rules;
        let command = Command {
            // A package manager may treat the image's own working directory as a project.
            working_directory: Some(GuestPath::home()),
            timeout: rules.install_timeout.saturating_sub(self.begun.elapsed()),
            output_bytes_max: rules.output_bytes_default,
            ..step.command
        };
        let kill = CancellationToken::new();
        let on_output = |stream, bytes: &[u8]| {
            if !self.left.is_cancelled() {
                (self.on_output)(stream, bytes);
            }
        };
        let watcher = Watcher { cancelled: &kill, on_output: &on_output };
        let running = self.execution.run(&self.owner, &self.call, command, watcher, outputs, OPERATION);
        tokio::pin!(running);
        tokio::select! {
            executed = &mut running => return executed,
            () = self.left.cancelled() => {}
        }
        if step.finishes {
            tokio::select! {
                executed = &mut running => return executed,
                () = sleep(FINISH_WITHIN) => {}
            }
        }
        kill.cancel();
        running.await
    }

    /// Whether the packages are those of the image's own package manager.
    fn is_of_system(&self) -> bool {
        self.kind.runtime() == Runtime::Shell
    }

    /// Returns a hint if the image lacks something to build packages, or if waiting used up the time.
    fn hint(&self, executed: &Executed, outputs: &Outputs, waited: Duration) -> Option<String> {
        match executed.cause {
            EndCause::TimedOut if waited >= WAIT_WORTH_TELLING => {
                let waited = waited.as_secs_f64();
                Some(format!("for {waited:.1} s of it, the call waited for another installation in the environment"))
            }
            EndCause::Exited if executed.exit_code != 0 && !self.is_of_system() => {
                let lacks = |text: String| BUILD_FAILURES.iter().any(|failure| text.contains(failure));
                outputs.texts().into_iter().any(lacks).then(|| BUILD_HINT.to_owned())
            }
            EndCause::Exited | EndCause::TimedOut | EndCause::Cancelled | EndCause::OutOfMemory => None,
        }
    }
}

/// Whether the command ended by itself.
fn has_ended(executed: &Executed) -> bool {
    executed.cause == EndCause::Exited && executed.signal.is_none()
}

fn with_hint(executed: Executed, hint: Option<String>) -> Executed {
    let hints: Vec<_> = executed.hint.into_iter().chain(hint).collect();
    Executed { hint: (!hints.is_empty()).then(|| hints.join("\n")), ..executed }
}
