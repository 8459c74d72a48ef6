// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Runs code and installs packages in environments.
//!
//! Code is sent as a file that an interpreter runs; the code is never part of a shell command line. The agent in the
//! guest enforces the timeouts; the agent's client limits the wait for a guest that never answers.

mod hints;
mod installation;
mod outputs;

use std::{path::Path, sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

pub use self::installation::{InstallationWatcher, PackageRequest};
use self::outputs::Outputs;
use super::{
    environments::Environments,
    fault::{ArgumentFault, CallerFault, Fault},
    guest_answer::await_guest,
    request::Call,
};
use crate::domain::{
    command::{Command, CommandLimits, EndCause, Executed, OutputStream, Script, User},
    environment_id::EnvironmentId,
    guest_path::GuestPath,
    output::OUTPUT_BYTES_MAX,
    principal::Principal,
    runtime::{ByRuntime, CommandLine, Runtime},
};
use crate::telemetry::STAGES;

/// Maximum bytes of code in one call.
pub const CODE_BYTES_MAX: usize = 512_000;

/// Maximum bytes of stdin in one call: the same limit as for a file.
pub const STDIN_BYTES_MAX: usize = 10 * 1024 * 1024;

/// Size in bytes above which an output is kept in a file in the guest. Two outputs of this size always fit into one
/// event of the answer, even if every byte must be escaped, so no output of a command is cut without a file.
const KEEP_OUTPUT_ABOVE_BYTES: usize = 32 * 1024;

/// The advice for larger inputs.
const TO_FILES: &str = "; put data into files with write_file";

/// The operator's commands for one runtime. They replace the guest's programs.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct OperatorCommands {
    /// The command that runs code.
    pub exec: Option<CommandLine>,
    /// The command that installs packages.
    pub install: Option<CommandLine>,
}

/// Timeouts, limits and programs for commands.
#[derive(Clone, Debug)]
pub struct ExecutionRules {
    /// The default timeout of code.
    pub exec_timeout_default: Duration,
    /// Maximum timeout that a caller can request.
    pub exec_timeout_max: Duration,
    /// The timeout of an installation.
    pub install_timeout: Duration,
    /// Resource limits of one command and of all processes that it starts.
    pub limits: CommandLimits,
    pub commands: ByRuntime<OperatorCommands>,
    /// Maximum bytes of each output in a result, unless the caller sets another maximum.
    pub output_bytes_default: usize,
}

/// Runs commands in environments.
#[derive(Clone, Debug)]
pub struct Execution {
    environments: Arc<Environments>,
    rules: ExecutionRules,
}

/// The caller that waits for a command.
#[derive(Clone, Copy)]
pub struct Watcher<'a> {
    /// Cancelled when the caller stops waiting.
    pub cancelled: &'a CancellationToken,
    /// Called with the output as it arrives. It must not block.
    pub on_output: &'a (dyn Fn(OutputStream, &[u8]) + Send + Sync),
}

impl std::fmt::Debug for Watcher<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watcher").field("cancelled", &self.cancelled).finish_non_exhaustive()
    }
}

impl Execution {
    #[must_use]
    pub fn new(environments: Arc<Environments>, rules: ExecutionRules) -> Self {
        Self { environments, rules }
    }

    /// Runs code with the interpreter of `language`, by default of the environment's runtime. `command` contains the
    /// standard input, variables, working directory and timeout. A non-zero exit code is a result, not a fault.
    ///
    /// # Errors
    /// Invalid arguments; an environment that accepts no calls; [`CallerFault::TimedOut`] or
    /// [`CallerFault::Cancelled`], once all processes of the call are dead.
    pub async fn execute(
        &self,
        owner: &Principal,
        id: EnvironmentId,
        language: Option<Runtime>,
        code: String,
        command: Command,
        watcher: Watcher<'_>,
    ) -> Result<Executed, Fault> {
        if code.is_empty() {
            return Err(ArgumentFault::NoCode.into());
        }
        ArgumentFault::check_size("code", code.len(), CODE_BYTES_MAX, TO_FILES)?;
        ArgumentFault::check_size("stdin", command.stdin.len(), STDIN_BYTES_MAX, TO_FILES)?;
        let (started, timeout) = (Instant::now(), command.timeout);
        let call = self.begin(owner, id, timeout, watcher).await?;
        call.environment.variables.check_with(&command.env).map_err(ArgumentFault::Variables)?;
        let runtime = language.unwrap_or(call.environment.runtime);
        let argv = self.interpreter(runtime, &call)?;
        let loader = Runtime::loader(&argv);
        let script = Some(Script { extension: runtime.extension(), code: code.into_bytes(), loader });
        // The time in which the call waited for others counts, but not that in which the machine came back.
        let timeout_left = timeout.saturating_sub(started.elapsed().saturating_sub(call.waited_for_machine));
        let command = Command { argv, script, user: User::Sandbox, timeout: timeout_left, ..command };
        let mut outputs = Outputs::new(&call.refusals, command.output_bytes_max);
        let executed = self.run(owner, &call, command, watcher, &mut outputs, "run the code").await?;
        outputs.note_memory_kills(call.untold_memory_kills());
        outputs.into_result(executed, timeout)
    }

    /// Runs a file in the environment with the interpreter of the environment's runtime. A timeout or a cancellation is
    /// a result, not a fault. Only the watcher receives the output. `command` contains the program's arguments,
    /// standard input, variables and timeout. A relative path is relative to the home folder; the program starts in the
    /// image's working directory, if there is one.
    ///
    /// # Errors
    /// An environment that accepts no calls, or a machine that ends during the call.
    pub async fn run_program(
        &self,
        owner: &Principal,
        id: EnvironmentId,
        path: &GuestPath,
        command: Command,
        watcher: Watcher<'_>,
    ) -> Result<Executed, Fault> {
        let call = self.begin(owner, id, command.timeout, watcher).await?;
        let mut argv = self.interpreter(call.environment.runtime, &call)?;
        argv.push(Path::new(GuestPath::home().as_str()).join(path.as_str()).display().to_string());
        argv.extend(command.argv);
        let command = Command { argv, user: User::Sandbox, ..command };
        self.run(owner, &call, command, watcher, &mut Outputs::new(&call.refusals, 0), "run the program").await
    }

    /// Runs a command under this server's limits, with the environment's variables.
    async fn run(
        &self,
        owner: &Principal,
        call: &Call,
        command: Command,
        watcher: Watcher<'_>,
        outputs: &mut Outputs,
        operation: &'static str,
    ) -> Result<Executed, Fault> {
        // An output that no result contains needs no file.
        let kept_above = match command.output_bytes_max {
            0 => u64::MAX,
            bytes_max => bytes_max.min(KEEP_OUTPUT_ABOVE_BYTES) as u64,
        };
        let env = call.environment.variables.with(command.env, command.user);
        let command = Command { env, limits: self.rules.limits, keep_output_above_bytes: kept_above, ..command };
        let mut on_output = |stream, bytes: &[u8]| {
            outputs.push(stream, bytes);
            (watcher.on_output)(stream, bytes);
        };
        let cancelled = async {
            tokio::select! {
                () = watcher.cancelled.cancelled() => {}
                () = call.cut_off.cancelled() => {}
            }
        };
        let running = call.machine.agent().exec(command, Box::pin(cancelled), &mut on_output);
        let guest = tracing::debug_span!(target: STAGES, "guest", operation);
        let executed = await_guest(&self.environments, owner, call, operation, running).instrument(guest).await?;
        if executed.cause == EndCause::Cancelled && call.cut_off.is_cancelled() {
            return Err(CallerFault::ShuttingDown.into());
        }
        Ok(executed)
    }

    /// Begins a call, unless the caller cancels it while it waits for others to end.
    async fn begin(
        &self,
        owner: &Principal,
        id: EnvironmentId,
        within: Duration,
        watcher: Watcher<'_>,
    ) -> Result<Call, Fault> {
        tokio::select! {
            biased;
            call = self.environments.begin(owner, id, within) => call,
            () = watcher.cancelled.cancelled() => Err(CallerFault::Cancelled { executed: None }.into()),
        }
    }

    fn interpreter(&self, runtime: Runtime, call: &Call) -> Result<Vec<String>, CallerFault> {
        let operator = self.rules.commands.of(runtime).exec.as_ref();
        runtime.interpreter(operator, call.machine.agent().capabilities()).map_err(CallerFault::Runtime)
    }

    /// Returns the maximum bytes of each output for a caller's request, or else the server's default.
    ///
    /// # Errors
    /// [`ArgumentFault::NotWhole`].
    pub fn output_bytes(&self, requested: Option<f64>) -> Result<usize, ArgumentFault> {
        match requested {
            Some(bytes) => ArgumentFault::whole_number("output_bytes", bytes, 1..=OUTPUT_BYTES_MAX),
            None => Ok(self.rules.output_bytes_default),
        }
    }

    /// Returns the timeout for a caller's `seconds`. If `seconds` is `None`, zero or negative, returns the server's
    /// default.
    ///
    /// # Errors
    /// [`ArgumentFault::AboveMaximum`].
    pub fn timeout(&self, seconds: Option<f64>) -> Result<Duration, ArgumentFault> {
        let max = self.rules.exec_timeout_max.as_secs_f64();
        match seconds {
            Some(value) if value > max => Err(ArgumentFault::AboveMaximum { name: "timeout_seconds", value, max }),
            Some(seconds) if seconds > 0.0 => Ok(Duration::from_secs_f64(seconds)),
            Some(_) | None => Ok(self.rules.exec_timeout_default),
        }
    }
}
