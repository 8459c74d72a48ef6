// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Runs a command: streams its output, enforces its deadline, and ends it when the host says so or is gone.
//!
//! A command that ends by itself is over at once, although a child that it left in the background may still hold its
//! pipes: what is in them by then is sent, and nobody waits for more. A call that ends in any other way takes
//! everything with it that it started, and is answered when all of that is gone.

mod input;
mod output;
mod process;
mod spool;

use std::{
    os::unix::process::ExitStatusExt,
    process::ExitStatus,
    time::{Duration, Instant},
};

use tokio::time::sleep;
use waggle_protocol::{
    Fault, FaultKind, Input, Reply,
    reply::{Cause, Exited, Status},
    request::Exec,
};

pub(crate) use self::spool::KeptOutputs;
use self::{input::Received, output::Output, process::Process};
use crate::{
    calls::{Reader, Writer},
    fault::fault_of,
    guest::Served,
};

/// Longest deadline that is honoured, in milliseconds: a day. The host's own limits are far below.
const TIMEOUT_MS_MAX: u64 = 24 * 60 * 60 * 1000;

/// The end of a command that was cancelled before all its inputs had arrived.
const NEVER_STARTED: Exited =
    Exited { status: Status::Signal(9), cause: Cause::Cancelled, duration_us: 0, stdout_file: None, stderr_file: None };

/// Serves an `Exec` call up to its last reply, which it returns; `None` if the host is gone. Whatever the outcome,
/// nothing that the command started outlives a cancelled, timed-out or broken call.
pub(crate) async fn run<'a>(
    served: &Served,
    request: &Exec,
    reader: &mut Reader,
    writer: &mut Writer,
) -> Option<Reply<'a>> {
    if request.argv.is_empty() {
        let message = "a command needs a program".to_owned();
        return Some(Reply::Fault(Fault { kind: FaultKind::BadRequest, message }));
    }
    let inputs = match input::receive(served, request, reader).await {
        Ok(Received::All(inputs)) => inputs,
        Ok(Received::Cancelled) => return Some(Reply::Exited(NEVER_STARTED)),
        Ok(Received::Gone) => return None,
        Err(fault) => return Some(Reply::Fault(fault)),
    };
    let started = Instant::now();
    let (mut process, mut output) = match start(served, request, &inputs).await {
        Ok(started) => started,
        Err(fault) => return Some(Reply::Fault(fault)),
    };
    let timeout = Duration::from_millis(request.timeout_ms.min(TIMEOUT_MS_MAX));
    let (cause, gone) = tokio::select! {
        // One that is over in time is over in time, however busy the agent was.
        biased;
        () = process.exited() => (Cause::Itself, false),
        gone = cancelled(reader) => (Cause::Cancelled, gone),
        () = sleep(timeout) => (Cause::Deadline, false),
        // Output that can't be sent has no reader any more.
        () = output.stream(served, writer) => (Cause::Cancelled, true),
    };
    let exited = end(process, cause, started).await;
    if gone {
        return None;
    }
    output.drain(served, writer).await.ok()?;
    let (stdout_file, stderr_file) = output.finish(served).await;
    inputs.remove().await;
    Some(exited.map_or_else(Reply::Fault, |exited| Reply::Exited(Exited { stdout_file, stderr_file, ..exited })))
}

async fn start(served: &Served, request: &Exec, inputs: &input::Inputs) -> Result<(Process, Output), Fault> {
    let failed = |source| fault_of(&source, "failed to make the command's pipes");
    let (output, stdout, stderr) = Output::open(served, request.keep, request.user).map_err(failed)?;
    let stdin = inputs.stdin().map_err(failed)?;
    let process = Process::start(served, request, inputs.script(), [stdin, stdout, stderr]).await?;
    Ok((process, output))
}

/// Ends the command, unless it ended by itself, and everything that it started.
async fn end(mut process: Process, cause: Cause, started: Instant) -> Result<Exited, Fault> {
    if cause != Cause::Itself {
        process.kill().await;
    }
    let duration_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
    let no_status = || Fault { kind: FaultKind::Other, message: "the command has no status".to_owned() };
    let status = process.leave().ok_or_else(no_status)??;
    let cause = if cause == Cause::Itself && process.was_out_of_memory() { Cause::Memory } else { cause };
    Ok(Exited { status: status_of(status), cause, duration_us, stdout_file: None, stderr_file: None })
}

/// Resolves when the call is to end early: with false if the host cancelled, with true if it is gone.
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
