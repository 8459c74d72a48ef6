// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Runs a command: streams its output, enforces its timeout, and kills it if the host cancels or disconnects.
//!
//! ```text
//!   command exits ─────▶ wait briefly for output that is on its way ──▶ reply; the rest goes to a file
//!   timeout ──▶ SIGTERM ──(empty, or 1 s)──▶ kill everything ─────────▶ reply
//!   cancel, lost host ─────────────────────▶ kill everything ─────────▶ reply
//! ```
//!
//! A command that exits ends its call, even if a background process still has its pipes open: that process goes on, and
//! its further output is written to a file. A timeout, a cancellation or a lost host instead ends everything that the
//! command started. The last reply is sent after the kill.

mod background;
mod code;
mod input;
mod output;
mod output_pipe;
mod process;
mod spool;

use std::{
    os::unix::process::ExitStatusExt,
    process::ExitStatus,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::sleep;
use waggle_protocol::{
    Fault, FaultKind, Input, Reply,
    reply::{Cause, Exited, Status},
    request::Exec,
};

pub(crate) use self::code::CodeFolder;
use self::{
    background::BackgroundOutputs,
    input::{Inputs, NoInputs},
    output::Output,
    process::{Launcher, Process},
    spool::OutputFiles,
};
use crate::{
    cgroups::CallGroups,
    command_settings::CommandSettings,
    fault::{fault, fault_of},
    platform::Platform,
    streams::{Reader, Writer},
    temporary::TemporaryFolder,
};

/// Maximum timeout of a command in milliseconds: one day. The host's own limits are far lower.
const TIMEOUT_MS_MAX: u64 = 24 * 60 * 60 * 1000;

/// Time from the SIGTERM at a command's timeout to the kill. Programs flush their output and remove their files
/// meanwhile.
const TERMINATION_MAX: Duration = Duration::from_secs(1);

/// The answer for a command that was cancelled before all its inputs had arrived.
const NEVER_STARTED: Exited = Exited::new(Status::Signal(9), Cause::Cancelled, 0);

/// Runs the commands of all calls.
#[derive(Debug)]
pub(crate) struct Executor {
    launcher: Launcher,
    temporary: Arc<TemporaryFolder>,
    code: CodeFolder,
    outputs: Arc<OutputFiles>,
    background: BackgroundOutputs,
}

impl Executor {
    pub(crate) fn new(
        platform: Arc<Platform>,
        settings: Arc<CommandSettings>,
        temporary: TemporaryFolder,
        code: CodeFolder,
    ) -> Self {
        let temporary = Arc::new(temporary);
        let outputs = Arc::new(OutputFiles::new(Arc::clone(&temporary)));
        let background = BackgroundOutputs::new(Arc::clone(&temporary));
        Self { launcher: Launcher::new(platform, settings), temporary, code, outputs, background }
    }

    /// Returns how many processes of ended calls the OOM killer has killed.
    pub(crate) fn background_memory_kills(&self) -> u64 {
        self.launcher.groups.background_memory_kills()
    }

    /// Returns the control groups of the commands.
    pub(crate) fn groups(&self) -> &CallGroups {
        &self.launcher.groups
    }

    /// Serves an `Exec` call, and returns its last reply for the caller to send; `None` if the host is gone.
    pub(crate) async fn run<'a>(&self, request: &Exec, reader: &mut Reader, writer: &mut Writer) -> Option<Reply<'a>> {
        if request.argv.is_empty() {
            return Some(Reply::Fault(process::no_program()));
        }
        let inputs = match input::receive(&self.code, &self.temporary, request, reader).await {
            Ok(inputs) => inputs,
            Err(NoInputs::Cancelled) => return Some(Reply::Exited(NEVER_STARTED)),
            Err(NoInputs::HostGone) => return None,
            Err(NoInputs::Failed(fault)) => return Some(Reply::Fault(fault)),
        };
        let started = Instant::now();
        let (mut process, mut output) = match self.start(request, &inputs).await {
            Ok(started) => started,
            Err(fault) => return Some(Reply::Fault(fault)),
        };
        let timeout = Duration::from_millis(request.timeout_ms.min(TIMEOUT_MS_MAX));
        let (mut cause, mut host_gone) = tokio::select! {
            // The exit is checked first, so a command that exited in time never counts as timed out.
            biased;
            () = process.exited() => (Cause::Itself, false),
            host_gone = cancelled(reader) => (Cause::Cancelled, host_gone),
            () = sleep(timeout) => (Cause::Deadline, false),
            // `stream` resolves only if the host is gone.
            () = output.stream(writer) => (Cause::Cancelled, true),
        };
        let mut duration = started.elapsed();
        if cause == Cause::Itself {
            tokio::select! {
                biased;
                settled = output.settle(writer) => host_gone = settled.is_err(),
                gone = cancelled(reader) => (cause, host_gone) = (Cause::Cancelled, gone),
            }
        } else if cause == Cause::Deadline {
            tokio::select! {
                () = process.terminate() => {}
                () = sleep(TERMINATION_MAX) => {}
                gone = cancelled(reader) => host_gone = gone,
                () = output.stream(writer) => host_gone = true,
            }
        }
        if cause != Cause::Itself || host_gone {
            process.kill().await;
            duration = started.elapsed();
        }
        let exited = self.end(process, cause, duration);
        if host_gone {
            return None;
        }
        output.drain(writer).await.ok()?;
        let still_open = output.is_open() && cause == Cause::Itself;
        let ([stdout_file, stderr_file], pipes) = output.finish().await;
        let background_file = if still_open { self.background.follow(pipes).await } else { None };
        inputs.remove().await;
        Some(exited.map_or_else(Reply::Fault, |exited| {
            Reply::Exited(Exited { stdout_file, stderr_file, background_file, ..exited })
        }))
    }

    /// Returns how the command ended. Background processes of a command that has exited go on.
    fn end(&self, mut process: Process, cause: Cause, duration: Duration) -> Result<Exited, Fault> {
        let no_status = || fault(FaultKind::Other, "the command has no exit status");
        let background_memory_kills = self.background_memory_kills();
        let (was_out_of_memory, refused) = (process.was_out_of_memory(), process.refused());
        let status = process.take_status().ok_or_else(no_status)??;
        let cause = if cause == Cause::Itself && was_out_of_memory { Cause::Memory } else { cause };
        let duration_us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        Ok(Exited { refused, background_memory_kills, ..Exited::new(status_of(status), cause, duration_us) })
    }

    async fn start(&self, request: &Exec, inputs: &Inputs) -> Result<(Process, Output), Fault> {
        let failed = |source| fault_of(&source, "failed to create the pipes of the command");
        let opened = Output::open(&self.launcher.platform, &self.outputs, request.keep, request.user);
        let (output, stdout, stderr) = opened.map_err(failed)?;
        let stdin = inputs.stdin().map_err(failed)?;
        let script = request.script.as_ref().zip(inputs.code());
        let arguments = script.map_or_else(Vec::new, |(script, file)| self.code.arguments(script, file));
        let process = self.launcher.start(request, arguments, [stdin, stdout, stderr]).await?;
        Ok((process, output))
    }
}

/// Resolves when the call must end early: to false if the host cancelled it, to true if the host is gone.
async fn cancelled(reader: &mut Reader) -> bool {
    loop {
        match reader.receive::<Input<'_>>().await {
            Ok(Some(Input::Cancel)) => return false,
            Ok(Some(Input::Data(_))) => {}
            Ok(None) | Err(_) => return true,
        }
    }
}

fn status_of(status: ExitStatus) -> Status {
    match (status.code(), status.signal()) {
        (Some(code), _) => Status::Code(u8::try_from(code & 0xff).unwrap_or(u8::MAX)),
        (None, signal) => Status::Signal(signal.and_then(|signal| u8::try_from(signal).ok()).unwrap_or(0)),
    }
}
