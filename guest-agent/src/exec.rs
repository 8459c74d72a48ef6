// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Runs a command: streams its output, enforces its deadline, and ends it when the host says so or is gone.
//!
//! A command that ends by itself is over at once, although a child that it left in the background may still hold its
//! pipes: what is in them by then is sent, and nobody waits for more.

mod output;

use std::{
    io,
    os::unix::process::ExitStatusExt,
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    time::sleep,
};
use waggle_protocol::{
    Fault, FaultKind, Input, Reply,
    reply::{Cause, Exited, Status},
    request::{Exec, Script, User},
};

use self::output::Output;
use crate::{
    calls::{Reader, Writer},
    fault::fault_of,
    guest::{Guest, HOME, Identity, SANDBOX_ID},
    script::ScriptFile,
};

/// Longest deadline that is honoured, in milliseconds: a day. The host's own limits are far below.
const TIMEOUT_MS_MAX: u64 = 24 * 60 * 60 * 1000;

/// Largest script, in bytes: twice what the host lets its clients send.
const SCRIPT_BYTES_MAX: u64 = 1024 * 1024;

/// Serves an `Exec` call up to its last reply, which it returns; `None` if the host is gone. Whatever the outcome, the
/// command's process group does not outlive a cancelled, timed-out or broken call.
pub(crate) async fn run<'a>(
    guest: &Guest,
    request: Exec,
    reader: &mut Reader,
    writer: &mut Writer,
) -> Option<Reply<'a>> {
    let script = match &request.script {
        None => None,
        Some(script) => match receive_script(guest, script, request.user, reader).await {
            Ok(script) => Some(script?),
            Err(fault) => return Some(Reply::Fault(fault)),
        },
    };
    let (mut running, mut output) = match Running::start(guest, &request, script.as_ref()) {
        Ok(started) => started,
        Err(fault) => return Some(Reply::Fault(fault)),
    };
    let timeout = Duration::from_millis(request.timeout_ms.min(TIMEOUT_MS_MAX));
    let (cause, gone) = tokio::select! {
        () = running.exited() => (Cause::Itself, false),
        () = sleep(timeout) => (Cause::Deadline, false),
        gone = cancelled(reader) => (Cause::Cancelled, gone),
        // Output that can't be sent has no reader any more.
        () = output.stream(writer) => (Cause::Cancelled, true),
    };
    let exited = running.end(cause).await;
    if gone {
        return None;
    }
    output.drain(writer).await.ok()?;
    Some(exited.map_or_else(Reply::Fault, Reply::Exited))
}

/// Takes in a script's bytes; `Ok(None)` if the host left or cancelled meanwhile.
async fn receive_script(
    guest: &Guest,
    script: &Script,
    user: User,
    reader: &mut Reader,
) -> Result<Option<ScriptFile>, Fault> {
    if script.bytes > SCRIPT_BYTES_MAX {
        let message = format!("a script of {} bytes is above the agent's limit of {SCRIPT_BYTES_MAX}", script.bytes);
        return Err(Fault { kind: FaultKind::TooLarge, message });
    }
    let failed = |source: io::Error| fault_of(&source, "failed to write the code to a file in /tmp");
    let mut file = ScriptFile::create(guest, &script.extension, user).map_err(failed)?;
    let mut missing = script.bytes;
    while missing > 0 {
        match reader.receive::<Input<'_>>().await {
            Ok(Some(Input::Data(bytes))) if !bytes.is_empty() && bytes.len() as u64 <= missing => {
                file.append(bytes).map_err(failed)?;
                missing -= bytes.len() as u64;
            }
            Ok(Some(Input::Data(_))) => {
                let message = format!("an input does not fit the {missing} bytes that the script still lacks");
                return Err(Fault { kind: FaultKind::BadRequest, message });
            }
            Ok(Some(Input::Cancel) | None) | Err(_) => return Ok(None),
        }
    }
    Ok(Some(file))
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

/// A command that was started. Dropping it kills its process group.
struct Running {
    child: Child,
    group: Option<Pid>,
    started: Instant,
    status: Option<io::Result<ExitStatus>>,
}

impl Running {
    fn start(guest: &Guest, request: &Exec, script: Option<&ScriptFile>) -> Result<(Self, Output), Fault> {
        let (program, arguments) = request
            .argv
            .split_first()
            .ok_or_else(|| Fault { kind: FaultKind::BadRequest, message: "a command needs a program".to_owned() })?;
        let as_root = request.user == User::Root;
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(guest.command_env(as_root)).envs(request.env.iter().cloned());
        command.args(script.map(ScriptFile::path));
        command.current_dir(guest.place(HOME));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0).kill_on_drop(true);
        if guest.identity == Identity::Sandbox && !as_root {
            command.uid(SANDBOX_ID).gid(SANDBOX_ID);
        }
        let started = Instant::now();
        let failed = |source: io::Error| fault_of(&source, &format!("failed to start {program}"));
        let mut child = command.spawn().map_err(failed)?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let running = Self { child, group, started, status: None };
        let output = Output::new(
            stdout.and_then(|pipe| pipe.into_owned_fd().ok()),
            stderr.and_then(|pipe| pipe.into_owned_fd().ok()),
        );
        Ok((running, output.map_err(failed)?))
    }

    /// Resolves when the command has exited. The status is kept.
    async fn exited(&mut self) {
        if self.status.is_none() {
            self.status = Some(self.child.wait().await);
        }
    }

    /// Ends the command, unless it ended by itself, and reaps it.
    async fn end(mut self, cause: Cause) -> Result<Exited, Fault> {
        if cause != Cause::Itself {
            self.kill();
        }
        self.exited().await;
        let duration_us = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        // The group is free to live on behind a leader that ended by itself: servers that were started with `&` do.
        self.group = None;
        match self.status.take() {
            Some(Ok(status)) => Ok(Exited { status: status_of(status), cause, duration_us }),
            Some(Err(source)) => Err(fault_of(&source, "failed to wait for the command")),
            None => Err(Fault { kind: FaultKind::Other, message: "the command has no status".to_owned() }),
        }
    }

    fn kill(&self) {
        if let Some(group) = self.group {
            // A group that is gone already needs no signal.
            let _signalled = killpg(group, Signal::SIGKILL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

fn status_of(status: ExitStatus) -> Status {
    match (status.code(), status.signal()) {
        (Some(code), _) => Status::Code(u8::try_from(code & 0xff).unwrap_or(u8::MAX)),
        (None, signal) => Status::Signal(signal.and_then(|signal| u8::try_from(signal).ok()).unwrap_or(0)),
    }
}
