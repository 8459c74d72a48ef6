// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Runs a command: streams its output, enforces its timeout, and kills it if the host cancels or disconnects.
//!
//! A command that exits ends its call at once, even if a background child still has its pipes open. Bytes already in
//! the pipes are sent; later bytes are not. A timeout, a cancellation or a lost host instead kills everything that the
//! command started. The last reply is sent after the kill.

mod input;
mod output;
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

use self::{
    input::{Inputs, NoInputs},
    output::Output,
    process::{Launcher, Process},
    spool::OutputFiles,
};
use crate::{
    command_settings::CommandSettings,
    fault::{fault, fault_of},
    platform::Platform,
    streams::{Reader, Writer},
    temporary::TemporaryFolder,
};

/// Maximum timeout of a command in milliseconds: one day. The host's own limits are far lower.
const TIMEOUT_MS_MAX: u64 = 24 * 60 * 60 * 1000;

/// The answer for a command that was cancelled before all its inputs had arrived.
const NEVER_STARTED: Exited = Exited::new(Status::Signal(9), Cause::Cancelled, 0);

/// Runs the commands of all calls.
#[derive(Debug)]
pub(crate) struct Executor {
    launcher: Launcher,
    temporary: Arc<TemporaryFolder>,
    outputs: Arc<OutputFiles>,
}

impl Executor {
    pub(crate) fn new(platform: Arc<Platform>, settings: Arc<CommandSettings>, folder: TemporaryFolder) -> Self {
        let temporary = Arc::new(folder);
        let outputs = Arc::new(OutputFiles::new(Arc::clone(&temporary)));
        Self { launcher: Launcher::new(platform, settings), outputs, temporary }
    }

    /// Serves an `Exec` call, and returns its last reply for the caller to send; `None` if the host is gone.
    pub(crate) async fn run<'a>(&self, request: &Exec, reader: &mut Reader, writer: &mut Writer) -> Option<Reply<'a>> {
        if request.argv.is_empty() {
            return Some(Reply::Fault(process::no_program()));
        }
        let inputs = match input::receive(&self.temporary, request, reader).await {
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
        let (cause, host_gone) = tokio::select! {
            // The exit is checked first, so a command that exited in time never counts as timed out.
            biased;
            () = process.exited() => (Cause::Itself, false),
            host_gone = cancelled(reader) => (Cause::Cancelled, host_gone),
            () = sleep(timeout) => (Cause::Deadline, false),
            // `stream` resolves only if the host is gone.
            () = output.stream(writer) => (Cause::Cancelled, true),
        };
        let exited = end(process, cause, started).await;
        if host_gone {
            return None;
        }
        output.drain(writer).await.ok()?;
        let (stdout_file, stderr_file) = output.finish().await;
        inputs.remove().await;
        Some(exited.map_or_else(Reply::Fault, |exited| Reply::Exited(Exited { stdout_file, stderr_file, ..exited })))
    }

    async fn start(&self, request: &Exec, inputs: &Inputs) -> Result<(Process, Output), Fault> {
        let failed = |source| fault_of(&source, "failed to create the pipes of the command");
        let opened = Output::open(&self.launcher.platform, &self.outputs, request.keep, request.user);
        let (output, stdout, stderr) = opened.map_err(failed)?;
        let stdin = inputs.stdin().map_err(failed)?;
        let process = self.launcher.start(request, inputs.script(), [stdin, stdout, stderr]).await?;
        Ok((process, output))
    }
}

/// Kills everything that the command started, unless the command exited by itself. Returns how the command ended.
async fn end(mut process: Process, cause: Cause, started: Instant) -> Result<Exited, Fault> {
    if cause != Cause::Itself {
        process.kill().await;
    }
    let duration_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
    let no_status = || fault(FaultKind::Other, "the command has no exit status");
    let status = process.take_status().ok_or_else(no_status)??;
    let cause = if cause == Cause::Itself && process.was_out_of_memory() { Cause::Memory } else { cause };
    Ok(Exited::new(status_of(status), cause, duration_us))
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
