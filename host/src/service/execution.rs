// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Runs code and installs packages in environments.
//!
//! Code travels as a file and is run by an interpreter, never through a shell. The agent in the guest enforces the
//! time-outs; that no call waits for ever for a guest which answers nothing is the adapter's care.

mod outcome;
mod program;

use std::{future::Future, sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use self::outcome::Outputs;
pub use self::{outcome::Executed, program::Program};
use super::{
    driver::Call,
    environments::Environments,
    fault::{ArgumentFault, CallerFault, Fault, ServerFault},
    log_limit,
};
use crate::domain::{
    environment::EnvironmentId,
    guest_path::GuestPath,
    output::OUTPUT_BYTES_MAX,
    package_name::parse_packages,
    ports::{CallFault, Command, CommandLimits, EndCause, Ended, OutputStream, Script, User},
    principal::Principal,
    runtime::{ByRuntime, CommandLine, InstallStep, Runtime},
    variables::Variables,
};
use crate::telemetry::STAGES;

/// The largest piece of code in one call.
pub const CODE_BYTES_MAX: usize = 512_000;

/// The largest stdin of one call: as much as a file.
pub const STDIN_BYTES_MAX: usize = 10 * 1024 * 1024;

/// What to do with more than that.
const TO_FILES: &str = "; put data into files with write_file";

/// The operator's commands for one runtime, in place of what the guest has.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct OperatorCommands {
    /// Runs code.
    pub exec: Option<CommandLine>,
    /// Installs packages.
    pub install: Option<CommandLine>,
}

/// How long commands may run, and what runs them.
#[derive(Clone, Debug)]
pub struct ExecutionRules {
    /// For code whose caller says nothing.
    pub exec_timeout_default: Duration,
    /// The most that a caller can ask for.
    pub exec_timeout_max: Duration,
    /// For an installation.
    pub install_timeout: Duration,
    /// What one command and all that it starts may use.
    pub limits: CommandLimits,
    /// By runtime.
    pub commands: ByRuntime<OperatorCommands>,
}

/// Runs commands in environments.
#[derive(Debug)]
pub struct Execution {
    environments: Arc<Environments>,
    rules: ExecutionRules,
}

/// Code that a client wants run.
#[derive(Clone, Debug)]
pub struct Code {
    /// The environment's own if absent.
    pub language: Option<Runtime>,
    /// The program text.
    pub text: String,
    /// The default if absent, zero or negative.
    pub timeout_s: Option<f64>,
    /// What it reads from its standard input.
    pub stdin: String,
    /// Where it starts; the image's own working directory if absent, else the home.
    pub working_directory: Option<GuestPath>,
    /// What its environment has besides.
    pub variables: Variables,
}

/// Who waits for a command.
#[derive(Clone, Copy)]
pub struct Watcher<'a> {
    /// Cancelled when nobody waits any more.
    pub cancelled: &'a CancellationToken,
    /// Hears the output as it arrives. It must not block.
    pub hear: &'a (dyn Fn(OutputStream, &[u8]) + Send + Sync),
}

impl std::fmt::Debug for Watcher<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watcher").field("cancelled", &self.cancelled).finish_non_exhaustive()
    }
}

impl Execution {
    /// Commands for these environments, under these rules.
    #[must_use]
    pub fn new(environments: Arc<Environments>, rules: ExecutionRules) -> Self {
        Self { environments, rules }
    }

    /// Runs a piece of code to its end. A failing exit code is a result, not a fault.
    ///
    /// # Errors
    /// [`CallerFault::TimedOut`] and [`CallerFault::Cancelled`] once everything that it started is dead; and what
    /// stands against the call in the first place.
    pub async fn execute(
        &self,
        owner: &Principal,
        id: EnvironmentId,
        code: Code,
        watcher: Watcher<'_>,
    ) -> Result<Executed, Fault> {
        let limit = self.exec_timeout(code.timeout_s)?;
        if code.text.is_empty() {
            return Err(ArgumentFault::NoCode.into());
        }
        check_size("code", code.text.len(), CODE_BYTES_MAX, TO_FILES)?;
        check_size("stdin", code.stdin.len(), STDIN_BYTES_MAX, TO_FILES)?;
        let call = self.environments.begin(owner, id).await?;
        let runtime = code.language.unwrap_or(call.environment.runtime);
        let operator = self.rules.commands.of(runtime).exec.as_ref();
        let argv = runtime.interpreter(operator, call.machine.capabilities()).map_err(CallerFault::Runtime)?;
        let command = Command {
            argv,
            script: Some(Script { extension: runtime.extension(), code: code.text.into_bytes() }),
            stdin: code.stdin.into_bytes(),
            env: code.variables.into_pairs(),
            working_directory: code.working_directory,
            user: User::Sandbox,
            timeout: limit,
            limits: self.rules.limits,
            keep_output_above_bytes: OUTPUT_BYTES_MAX,
        };
        let mut outputs = Outputs::new(&call.refusals);
        let ended = self.run(owner, &call, command, watcher, &mut outputs, "run the code").await?;
        outputs.into_result(ended, limit)
    }

    /// Installs packages with what the environment's runtime installs them with, and reports what that says.
    ///
    /// # Errors
    /// As [`Execution::execute`]; a package manager that fails is a result.
    pub async fn install_packages(
        &self,
        owner: &Principal,
        id: EnvironmentId,
        packages: &str,
        watcher: Watcher<'_>,
    ) -> Result<Executed, Fault> {
        let packages = parse_packages(packages).map_err(ArgumentFault::Packages)?;
        let call = self.environments.begin(owner, id).await?;
        let runtime = call.environment.runtime;
        let operator = self.rules.commands.of(runtime).install.as_ref();
        let installer = runtime.installer(operator, call.machine.capabilities()).map_err(CallerFault::Runtime)?;
        let limit = self.rules.install_timeout;
        let start = Instant::now();
        let mut outputs = Outputs::new(&call.refusals);
        let command = |step: InstallStep| Command {
            argv: step.argv,
            script: step.script.map(|(extension, code)| Script { extension, code: code.into_bytes() }),
            stdin: Vec::new(),
            env: step.env,
            // An image's own folder may hold what a package manager takes for its business.
            working_directory: Some(GuestPath::home()),
            user: step.user,
            timeout: limit.saturating_sub(start.elapsed()),
            limits: self.rules.limits,
            keep_output_above_bytes: OUTPUT_BYTES_MAX,
        };
        let operation = "install the packages";
        let (first, then) = installer.steps(&packages);
        let mut ended = self.run(owner, &call, command(first), watcher, &mut outputs, operation).await?;
        if let Some(step) = then.filter(|_| ended.exit_code == 0 && ended.cause == EndCause::Exited) {
            ended = self.run(owner, &call, command(step), watcher, &mut outputs, operation).await?;
        }
        outputs.into_result(Ended { duration: start.elapsed(), ..ended }, limit)
    }

    async fn run(
        &self,
        owner: &Principal,
        call: &Call,
        command: Command,
        watcher: Watcher<'_>,
        outputs: &mut Outputs,
        operation: &'static str,
    ) -> Result<Ended, Fault> {
        let mut on_output = |stream, bytes: &[u8]| {
            outputs.push(stream, bytes);
            (watcher.hear)(stream, bytes);
        };
        let running = call.machine.exec(command, Box::pin(watcher.cancelled.cancelled()), &mut on_output);
        let guest = tracing::debug_span!(target: STAGES, "guest", operation);
        await_guest(&self.environments, owner, call, operation, running).instrument(guest).await
    }

    fn exec_timeout(&self, asked_s: Option<f64>) -> Result<Duration, ArgumentFault> {
        let max = self.rules.exec_timeout_max;
        match asked_s {
            Some(seconds) if seconds > max.as_secs_f64() => {
                Err(ArgumentFault::AboveMaximum { name: "timeout_seconds", value: seconds, max: max.as_secs_f64() })
            }
            Some(seconds) if seconds > 0.0 => Ok(Duration::from_secs_f64(seconds)),
            Some(_) | None => Ok(self.rules.exec_timeout_default),
        }
    }
}

/// Waits for a guest's answer, and says what it means if there is none.
pub(super) async fn await_guest<T>(
    environments: &Environments,
    owner: &Principal,
    call: &Call,
    operation: &'static str,
    answer: impl Future<Output = Result<T, CallFault>>,
) -> Result<T, Fault> {
    let id = call.environment.id;
    match answer.await {
        Ok(answer) => Ok(answer),
        Err(CallFault::Refused { kind, message }) => Err(CallerFault::Guest { kind, message }.into()),
        Err(CallFault::Gone { reason }) => {
            if let Some(left_out) = log_limit::admitted(id) {
                tracing::warn!(environment = %id, operation, reason, left_out, "machine went away under a call");
            }
            Err(environments.why_gone_under_call(owner, id))
        }
        // An environment that is being ended breaks off its calls in the middle of a message.
        Err(CallFault::Protocol { .. }) if !environments.is_running(owner, id) => {
            Err(environments.why_gone_under_call(owner, id))
        }
        Err(source @ CallFault::Protocol { .. }) => Err(ServerFault::Call { operation, id, source }.into()),
    }
}

/// Whether an argument fits one call.
pub(super) fn check_size(
    name: &'static str,
    bytes: usize,
    bytes_max: usize,
    advice: &'static str,
) -> Result<(), ArgumentFault> {
    if bytes > bytes_max { Err(ArgumentFault::TooLarge { name, bytes, bytes_max, advice }) } else { Ok(()) }
}
