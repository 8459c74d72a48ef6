// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The host's handle to one runner: its lifeline, its output, and its exit. The lifeline is the socket on the runner's
//! stdin.

use std::{
    ffi::OsStr,
    io,
    os::fd::OwnedFd,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
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
    live_log::LiveLog,
    roles,
    runner_messages::{LINE_BYTES_MAX, Orders, Report},
};

/// Timeout for the runner's exit after its lifeline closed. Killing the VMM and removing a folder takes 50 ms.
const END_MAX: Duration = Duration::from_secs(3);
/// Timeout for the end of the runner's pipes after its exit. Its programs may keep the pipes open a moment longer.
const PIPES_END_MAX: Duration = Duration::from_secs(1);
/// Size of the buffer for reads from a pipe, in bytes.
const READ_BYTES: usize = 8 * 1024;

#[derive(Debug, thiserror::Error)]
pub(crate) enum SpawnFault {
    #[error("failed to start the runner {program}")]
    Process { program: String, source: io::Error },
    #[error("failed to send the runner its orders")]
    Orders { source: io::Error },
}

/// A handle to one runner. Dropping the handle closes the lifeline; the runner then ends its machine and exits.
#[derive(Debug)]
pub(super) struct RunnerProcess {
    child: Child,
    pid: Option<Pid>,
    lifeline: UnixStream,
    report: Vec<u8>,
    console: Arc<Mutex<ConsoleTail>>,
    programs: Arc<Mutex<ConsoleTail>>,
    panicked: CancellationToken,
    readers: JoinSet<()>,
}

impl RunnerProcess {
    /// Starts `runner`, which is this binary, and sends the orders. With `shows_log`, the output of the VMM is
    /// logged as it arrives.
    ///
    /// # Errors
    /// [`SpawnFault`]; no process keeps running.
    pub(super) async fn start(runner: &OsStr, orders: &Orders, shows_log: bool) -> Result<Self, SpawnFault> {
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
        let mut lifeline = UnixStream::from_std(ours).map_err(process)?;
        let mut line = serde_json::to_vec(orders).map_err(|fault| SpawnFault::Orders { source: fault.into() })?;
        line.push(b'\n');
        lifeline.write_all(&line).await.map_err(|source| SpawnFault::Orders { source })?;
        Ok(Self { child, pid, lifeline, report: Vec::new(), console, programs, panicked, readers })
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
        let _ = timeout(PIPES_END_MAX, lifeline.read_to_end(&mut self.report)).await;
        match (serde_json::from_slice::<Report>(&self.report), status) {
            (Ok(report), _) => report.to_string(),
            (Err(_), Ok(status)) => format!("the runner ended: {status}"),
            (Err(_), Err(fault)) => format!("failed to wait for the runner: {fault}"),
        }
    }

    /// Stops the runner and its programs, waits for their exit, and returns their last output.
    pub(super) async fn stop(self) -> LastOutput {
        let Self { mut child, pid, lifeline, report: _, console, programs, panicked, mut readers } = self;
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
