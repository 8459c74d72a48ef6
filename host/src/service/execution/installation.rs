// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Installs packages in environments, one installation of an environment at a time.
//!
//! ```text
//!   wait for the queue ──turn──▶ wait for a place ──▶ step ──succeeded──▶ step ... ──▶ result
//!          │                            │              │
//!          │ cancelled, timeout         │              ├─timeout: killed; the next installation repairs
//!          ▼                            ▼              └─cancelled, or the caller left: the caller is answered
//!        fault                        fault              at once, and no further step begins
//!                                                          ├─a step that may be killed: killed
//!                                                          └─a step that changes the system's packages:
//!                                                            continues for a while
//! ```
//!
//! An installation runs in a task of its own, because it may outlive its caller. The task holds the turn in the
//! environment's queue and its call. It ends at the latest when the machine ends.

use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::{Execution, Outputs, Watcher};
use crate::{
    domain::{
        command::{Command, EndCause, Executed, OutputStream, User},
        environment_id::EnvironmentId,
        guest_path::GuestPath,
        package_name::{PackageName, parse_packages},
        principal::Principal,
        runtime::{Installer, KilledInstallation, PackageKind, Runtime, Step},
    },
    service::{
        fault::{ArgumentFault, CallerFault, Fault, RestOfInstallation},
        installation_queue::Turn,
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

/// The hint for packages that could not be built.
const BUILD_HINT: &str = "the image lacks a program or a library that the packages are built with; install it with \
                          install_packages and system: true (in Debian for example build-essential, python3-dev or \
                          libpq-dev), then retry";

/// Parts of what build tools print if the image lacks a program or a library.
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
        let environments = &self.environments;
        let turn = environments.installation_turn(owner, id, timeout);
        let turn = unless_cancelled(watcher.cancelled, turn).await?;
        let queued = begun.elapsed();
        let call = environments.begin(owner, id, timeout.saturating_sub(queued));
        let call = unless_cancelled(watcher.cancelled, call).await?;
        let kind = match request.system {
            true => PackageKind::System,
            false => PackageKind::Runtime(call.environment.runtime),
        };
        let operator = self.rules.commands.of(kind.runtime()).install.as_ref();
        let installer = kind.installer(operator, call.machine.agent().capabilities()).map_err(CallerFault::Runtime)?;
        let (left, waited_for_machine) = (CancellationToken::new(), call.waited_for_machine);
        let installation = Installation {
            execution: self.clone(),
            owner: owner.clone(),
            call,
            kind,
            turn,
            begun: begun + waited_for_machine,
            queued,
            left: left.clone(),
            on_output: watcher.on_output,
        };
        let running = self.environments.spawn(installation.run(installer, packages).in_current_span());
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
            () = watcher.cancelled.cancelled() => Err(cancelled(rest_of(kind)).into()),
        }
    }
}

/// An installation that runs.
struct Installation {
    execution: Execution,
    owner: Principal,
    call: Call,
    kind: PackageKind,
    turn: Turn,
    /// The time of the request.
    begun: Instant,
    /// The time that the installation waited for its turn.
    queued: Duration,
    /// Cancelled when the caller has cancelled the call or left.
    left: CancellationToken,
    on_output: Box<OnOutput>,
}

impl Installation {
    /// Runs the steps, and notes whether the next installation must repair what this one leaves.
    async fn run(self, installer: Installer, packages: Vec<PackageName>) -> Result<Executed, Fault> {
        let rules = &self.execution.rules;
        let (start, began) = (Instant::now(), SystemTime::now());
        let killed = self.turn.killed(self.kind);
        // Until it has ended by itself, the installation counts as killed.
        let latest_end = began + rules.install_timeout + FINISH_WITHIN;
        let user = if self.is_of_system() { User::Root } else { User::Sandbox };
        let mut outputs = Outputs::new(&self.call.refusals, rules.output_bytes_default).of(user);
        let mut last = None;
        for step in installer.steps(&packages, killed) {
            if self.left.is_cancelled() {
                return Err(cancelled(rest_of(self.kind)).into());
            }
            if last.is_some() {
                outputs.begin_step(rules.output_bytes_default);
            }
            let installs = step.installs;
            if installs {
                self.turn.set_killed(self.kind, Some(killed_since(killed, began, latest_end)));
            }
            let executed = self.step(step, &mut outputs).await;
            if installs {
                let own = killed_since(killed, began, SystemTime::now());
                self.turn.set_killed(self.kind, left_to_repair(self.kind, killed, own, &executed));
            }
            let executed = executed?;
            let has_succeeded = has_ended(&executed) && executed.exit_code == 0;
            last = Some(executed);
            if !has_succeeded {
                break;
            }
        }
        let executed = last.ok_or(CallerFault::ShuttingDown)?;
        let executed = Executed { duration: start.elapsed(), ..executed };
        let hint = self.hint(&executed, &outputs);
        if !self.left.is_cancelled() {
            outputs.note_memory_kills(self.call.untold_memory_kills());
        }
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
        is_of_system(self.kind)
    }

    /// Returns a hint if the image lacks something to build packages, or if waiting used up the time.
    fn hint(&self, executed: &Executed, outputs: &Outputs) -> Option<String> {
        match executed.cause {
            EndCause::TimedOut if self.queued >= WAIT_WORTH_TELLING => {
                let waited = self.queued.as_secs_f64();
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

fn is_of_system(kind: PackageKind) -> bool {
    kind.runtime() == Runtime::Shell
}

/// Returns what happens to an installation of such packages after its caller has cancelled it.
fn rest_of(kind: PackageKind) -> RestOfInstallation {
    if is_of_system(kind) { RestOfInstallation::Finishes { within: FINISH_WITHIN } } else { RestOfInstallation::Killed }
}

/// Returns an installation together with the killed one before it, which it did not repair.
fn killed_since(before: Option<KilledInstallation>, began: SystemTime, ended: SystemTime) -> KilledInstallation {
    KilledInstallation { began: before.map_or(began, |before| before.began), ended }
}

/// Returns the installation that the next one of its kind must repair, after the step that installs. `before` is the
/// one that `own` had to repair.
fn left_to_repair(
    kind: PackageKind,
    before: Option<KilledInstallation>,
    own: KilledInstallation,
    executed: &Result<Executed, Fault>,
) -> Option<KilledInstallation> {
    match executed {
        // The repair of the image's own packages may need a network. It is repeated until an installation succeeds.
        Ok(executed) if has_ended(executed) => before.filter(|_| executed.exit_code != 0 && is_of_system(kind)),
        // The guest did not run the step.
        Err(Fault::Caller(CallerFault::Guest { .. })) => before,
        Ok(_) | Err(_) => Some(own),
    }
}

fn cancelled(rest: RestOfInstallation) -> CallerFault {
    CallerFault::InstallationCancelled { rest }
}

/// Waits before the installation begins, unless the caller cancels it.
async fn unless_cancelled<T>(
    cancel: &CancellationToken,
    waiting: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(cancelled(RestOfInstallation::Nothing).into()),
        ready = waiting => ready,
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

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::domain::{call_fault::RefusalKind, output::Output};

    fn ended(cause: EndCause, exit_code: i32, signal: Option<i32>) -> Result<Executed, Fault> {
        Ok(Executed {
            exit_code,
            signal,
            cause,
            duration: Duration::ZERO,
            stdout: Output::default(),
            stderr: Output::default(),
            hint: None,
            background_file: None,
            refused: Vec::new(),
        })
    }

    fn killed(began: u64, ended: u64) -> KilledInstallation {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        KilledInstallation { began: at(began), ended: at(ended) }
    }

    #[test]
    fn installation_that_did_not_end_by_itself_is_left_to_repair() {
        let (earlier, pip) = (Some(killed(1, 2)), PackageKind::Runtime(Runtime::Python));
        let own = killed_since(earlier, killed(5, 6).began, killed(5, 6).ended);
        assert_eq!(own, killed(1, 6));
        let check = |executed: Result<Executed, Fault>, expected: [Option<KilledInstallation>; 3]| {
            let found = [(pip, None), (pip, earlier), (PackageKind::System, earlier)]
                .map(|(kind, before)| left_to_repair(kind, before, own, &executed));
            assert_eq!(found, expected, "{executed:?}");
        };
        check(ended(EndCause::Exited, 0, None), [None; 3]);
        check(ended(EndCause::Exited, 1, None), [None, None, earlier]);
        check(ended(EndCause::Exited, 137, Some(9)), [Some(own); 3]);
        for cause in [EndCause::TimedOut, EndCause::Cancelled, EndCause::OutOfMemory] {
            check(ended(cause, 137, None), [Some(own); 3]);
        }
        check(Err(CallerFault::ShuttingDown.into()), [Some(own); 3]);
        // The step did not run.
        let busy = CallerFault::Guest { kind: RefusalKind::Busy, message: String::new() };
        check(Err(busy.into()), [None, earlier, earlier]);
    }
}
