// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The host's handle to one runner: its lifeline, its output, and its exit. The lifeline is the socket on the runner's
//! stdin.

use std::{
    ffi::OsStr,
    io,
    os::fd::{BorrowedFd, OwnedFd},
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use serde::Serialize;
use tokio::{
    io::{AsyncRead, AsyncReadExt, Interest},
    net::UnixStream,
    process::Child,
    signal::unix::{SignalKind, signal},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use waggle_shared::mutex::lock;

use super::{
    console::ConsoleTail,
    line_socket,
    live_log::LiveLog,
    roles,
    runner_messages::{Answer, Command, LINE_BYTES_MAX, Orders, Report},
};

/// Timeout for the runner's exit after its lifeline closed. Killing the VMM and removing a folder takes 50 ms.
const END_MAX: Duration = Duration::from_secs(3);
/// Timeout for the end of the runner's pipes after its exit. Its programs may keep the pipes open a moment longer.
const PIPES_END_MAX: Duration = Duration::from_secs(1);
/// Timeout of a command, without the time for copies. It exceeds the sum of the runner's own timeouts.
const COMMAND_MAX: Duration = Duration::from_secs(150);
/// The lowest rate at which a host copies memory and disks, in bytes per second.
const COPIED_BYTES_PER_SECOND: u64 = 10 << 20;
/// Size of the buffer for reads from a pipe, in bytes.
const READ_BYTES: usize = 8 * 1024;

#[derive(Debug, thiserror::Error)]
pub(crate) enum SpawnFault {
    #[error("failed to start the runner {program}")]
    Process { program: String, source: io::Error },
    #[error("failed to send the runner its orders")]
    Orders { source: io::Error },
}

/// A command to a running machine failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandFault {
    #[error("failed to reach the runner")]
    Runner { source: io::Error },
    #[error("the runner did not answer within {} s", within.as_secs())]
    Silent { within: Duration },
    /// The runner or the VMM could not do it. The guest continues.
    #[error("{reason}")]
    Failed { reason: String },
    #[error("the guest could not be continued: {reason}")]
    StandsStill { reason: String },
}

/// A handle to one runner. Dropping the handle closes the lifeline; the runner then ends its machine and exits.
#[derive(Debug)]
pub(super) struct RunnerProcess {
    child: Child,
    pid: Option<Pid>,
    lifeline: UnixStream,
    /// The bytes that the runner has sent, except answers to commands.
    received: Vec<u8>,
    console: Arc<Mutex<ConsoleTail>>,
    programs: Arc<Mutex<ConsoleTail>>,
    panicked: CancellationToken,
    readers: JoinSet<()>,
}

impl RunnerProcess {
    /// Starts `runner`, which is this binary, and sends the orders with the files. With `shows_log`, the output of the
    /// VMM is logged as it arrives.
    ///
    /// # Errors
    /// [`SpawnFault`]; no process keeps running.
    pub(super) async fn start(
        runner: &OsStr,
        orders: &Orders,
        files: &[BorrowedFd<'_>],
        shows_log: bool,
    ) -> Result<Self, SpawnFault> {
        let process = |source| SpawnFault::Process { program: runner.to_string_lossy().into_owned(), source };
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(process)?;
        ours.set_nonblocking(true).map_err(process)?;
        let mut command = roles::command(runner, roles::MACHINE);
        command.stdin(OwnedFd::from(theirs)).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(process)?;
        // `command` still owns the runner's end of the lifeline.
        drop(command);
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        let console = Arc::<Mutex<ConsoleTail>>::default();
        let programs = Arc::<Mutex<ConsoleTail>>::default();
        let panicked = CancellationToken::new();
        let mut readers = JoinSet::new();
        if let Some(stdout) = child.stdout.take() {
            let (console, panicked) = (Arc::clone(&console), panicked.clone());
            readers.spawn(read_all(stdout, move |bytes| {
                let mut console = lock(&console);
                console.push(bytes);
                if console.panicked() {
                    panicked.cancel();
                }
            }));
        }
        if let Some(stderr) = child.stderr.take() {
            let programs = Arc::clone(&programs);
            let mut live_log = shows_log.then(LiveLog::default);
            readers.spawn(read_all(stderr, move |bytes| {
                lock(&programs).push(bytes);
                if let Some(live_log) = &mut live_log {
                    live_log.push(bytes);
                }
            }));
        }
        let lifeline = UnixStream::from_std(ours).map_err(process)?;
        send_line(&lifeline, orders, files).await.map_err(|source| SpawnFault::Orders { source })?;
        Ok(Self { child, pid, lifeline, received: Vec::new(), console, programs, panicked, readers })
    }

    /// Sends a command with files, and waits for the answer: the time for which the guest stood still. Commands follow
    /// one another: if this future is dropped, the runner must be stopped. `copied_bytes` may be copied meanwhile.
    ///
    /// # Errors
    /// [`CommandFault`].
    pub(super) async fn command(
        &mut self,
        command: &Command,
        files: &[BorrowedFd<'_>],
        copied_bytes: u64,
    ) -> Result<Duration, CommandFault> {
        let within = COMMAND_MAX + Duration::from_secs(copied_bytes / COPIED_BYTES_PER_SECOND);
        let answered = async {
            send_line(&self.lifeline, command, files).await?;
            loop {
                if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = self.received.drain(..=end).collect();
                    return Ok(serde_json::from_slice::<Answer>(&line)?);
                }
                let mut bytes = [0; READ_BYTES];
                let count = self.lifeline.read(&mut bytes).await?;
                if count == 0 || self.received.len() as u64 > LINE_BYTES_MAX {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                self.received.extend_from_slice(bytes.get(..count).unwrap_or_default());
            }
        };
        match timeout(within, answered).await {
            Err(_elapsed) => Err(CommandFault::Silent { within }),
            Ok(Err(source)) => Err(CommandFault::Runner { source }),
            Ok(Ok(Answer::Failed(reason))) => Err(CommandFault::Failed { reason }),
            Ok(Ok(Answer::StandsStill(reason))) => Err(CommandFault::StandsStill { reason }),
            Ok(Ok(Answer::Done { stood_still_us })) => Ok(Duration::from_micros(stood_still_us)),
        }
    }

    /// The guest's console output, which stays readable after the runner has ended.
    pub(super) fn console(&self) -> Arc<Mutex<ConsoleTail>> {
        Arc::clone(&self.console)
    }

    /// A token that is cancelled when the guest's kernel panics.
    pub(super) fn panicked(&self) -> CancellationToken {
        self.panicked.clone()
    }

    /// Waits until the runner exits or a signal stops it, and returns the reason. Cancel-safe.
    pub(super) async fn ended(&mut self) -> String {
        let pid = self.pid;
        let status = tokio::select! {
            status = self.child.wait() => status,
            () = stopped(pid) => return "the runner was stopped by a signal".to_owned(),
        };
        // The runner has exited. So its report is in the socket's buffer, and its end of the socket is closed.
        let mut lifeline = (&mut self.lifeline).take(LINE_BYTES_MAX);
        let _ = timeout(PIPES_END_MAX, lifeline.read_to_end(&mut self.received)).await;
        match (serde_json::from_slice::<Report>(&self.received), status) {
            (Ok(report), _) => report.to_string(),
            (Err(_), Ok(status)) => format!("the runner ended: {status}"),
            (Err(_), Err(fault)) => format!("failed to wait for the runner: {fault}"),
        }
    }

    /// Stops the runner and its programs, waits for their exit, and returns their last output.
    pub(super) async fn stop(self) -> LastOutput {
        let Self { mut child, pid, lifeline, received: _, console, programs, panicked, mut readers } = self;
        drop(lifeline);
        if is_stopped(pid) {
            // A runner that a signal has stopped cannot react. When it is killed, the kernel kills its programs too.
            let _ = child.kill().await;
        } else if timeout(END_MAX, child.wait()).await.is_err() {
            tracing::warn!("a runner did not exit in time and is killed");
            let _ = child.kill().await;
        }
        let _ = timeout(PIPES_END_MAX, async { while readers.join_next().await.is_some() {} }).await;
        LastOutput {
            panicked: panicked.is_cancelled(),
            console: lock(&console).last_lines(),
            programs: lock(&programs).last_lines(),
        }
    }
}

async fn send_line(socket: &UnixStream, message: &impl Serialize, files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    let (mut unsent, mut attached) = (line.as_slice(), files);
    while !unsent.is_empty() {
        let sent = socket.async_io(Interest::WRITABLE, || line_socket::send(socket, unsent, attached)).await?;
        unsent = unsent.get(sent..).unwrap_or_default();
        attached = &[];
    }
    Ok(())
}

// The kernel also sends SIGCHLD when a signal stops a child.
async fn stopped(pid: Option<Pid>) {
    let Ok(mut children) = signal(SignalKind::child()) else { return std::future::pending().await };
    while !is_stopped(pid) {
        if children.recv().await.is_none() {
            return std::future::pending().await;
        }
    }
}

fn is_stopped(pid: Option<Pid>) -> bool {
    let options = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    pid.is_some_and(|pid| matches!(waitid(WaitId::Pid(pid), options), Ok(Some(_))))
}

/// The last output of a machine and its programs, limited and escaped for the log.
#[derive(Debug)]
pub(super) struct LastOutput {
    /// Whether the guest's kernel panicked.
    pub(super) panicked: bool,
    /// Lines of the guest's console.
    pub(super) console: Vec<String>,
    /// Lines of the runner and of the programs that it runs.
    pub(super) programs: Vec<String>,
}

// Reads until the pipe ends, because a full pipe would block the guest.
async fn read_all(mut pipe: impl AsyncRead + Unpin, mut push: impl FnMut(&[u8])) {
    let mut bytes = [0; READ_BYTES];
    while let Ok(count @ 1..) = pipe.read(&mut bytes).await {
        push(bytes.get(..count).unwrap_or_default());
    }
}
