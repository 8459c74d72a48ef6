// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The agent's side of the sandbox: starts commands and receives their exit reports.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::{Arc, Mutex},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    libc::c_int,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{oneshot, watch},
    task::AbortHandle,
};
use waggle_protocol::{Fault, FaultKind, reply::RefusedCall};

use super::{
    SandboxSpawner,
    message::{self, SPAWN_FDS, SandboxReport, SandboxRequest, Spawn, SpawnStep},
    refusals::{CommandRefusals, Refusals, refuse_all},
};
use crate::{
    console::report,
    fault::{fault, fault_of},
    identity::Identity,
    mutex::lock,
    sandbox_user::SandboxUser,
    sys,
};

/// A sandbox in use. Dropping it ends the sandbox and all its processes.
#[derive(Debug)]
pub(crate) struct Sandbox {
    socket: Arc<AsyncFd<OwnedFd>>,
    commands: Commands,
    listener: AbortHandle,
    mounts: OwnedFd,
    user: SandboxUser,
    refusals: Arc<Refusals>,
    /// The task that refuses system calls.
    refusing: Option<AbortHandle>,
    progress: watch::Receiver<Progress>,
}

/// The sandbox's progress, apart from commands.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    /// The number of identities that the sandbox has applied.
    identities: u64,
    exited: bool,
}

/// The senders for the reports of running commands, by command number.
type Commands = Arc<Mutex<BTreeMap<u64, oneshot::Sender<SandboxReport>>>>;

/// Buffer size for a packet of [`SandboxReport`], in bytes.
const REPORT_BYTES_MAX: usize = 64;

/// A command that the sandbox was asked to start.
#[derive(Debug)]
pub(crate) struct StartedCommand {
    report: oneshot::Receiver<SandboxReport>,
    program: String,
    /// The candidate folders for the start of the command.
    folders: String,
    refusals: CommandRefusals,
}

impl Sandbox {
    /// Starts tasks that receive the sandbox's reports and refused system calls. Must be called in a Tokio runtime.
    pub(crate) fn connect(spawner: SandboxSpawner) -> io::Result<Self> {
        fcntl(&spawner.socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let socket = Arc::new(sys::watch(spawner.socket, Interest::READABLE | Interest::WRITABLE)?);
        let commands = Commands::default();
        let (progress_sender, progress) = watch::channel(Progress::default());
        let listener = tokio::spawn(listen(Arc::clone(&socket), Arc::clone(&commands), progress_sender)).abort_handle();
        let refusals = Arc::<Refusals>::default();
        let refuse = |calls| tokio::spawn(refuse_all(calls, Arc::clone(&refusals))).abort_handle();
        let refusing = spawner.refused_calls.map(refuse);
        Ok(Self {
            socket,
            commands,
            listener,
            mounts: spawner.mounts,
            user: spawner.user,
            refusals,
            refusing,
            progress,
        })
    }

    /// Returns a descriptor of the sandbox's mount namespace.
    pub(crate) fn mounts(&self) -> io::Result<OwnedFd> {
        self.mounts.try_clone()
    }

    /// Returns the user of the commands.
    pub(crate) fn user(&self) -> &SandboxUser {
        &self.user
    }

    /// Gives the sandbox the machine's identity, and waits until its processes would see it. The first
    /// identity must come before the first command. Only for one task at a time.
    pub(crate) async fn identify(&self, identity: &Identity) -> io::Result<()> {
        let before = self.progress.borrow().identities;
        let request = SandboxRequest::<&Identity, &Spawn>::Identify(identity);
        let send = |socket: &OwnedFd| message::send(socket.as_raw_fd(), &request, &[]);
        self.socket.async_io(Interest::WRITABLE, send).await?;
        let progress = self.reached(|progress| progress.identities > before).await;
        if progress.exited { Err(io::Error::other("the sandbox has exited")) } else { Ok(()) }
    }

    /// Asks the sandbox to start a command; `fds` are the command's stdin, stdout, stderr and cgroup. If the start
    /// fails, [`StartedCommand::exited`] returns the error.
    pub(crate) async fn start(&self, spawn: &Spawn, fds: [OwnedFd; SPAWN_FDS]) -> Result<StartedCommand, Fault> {
        let lost = |source: io::Error| fault_of(&source, "failed to send a command to the sandbox");
        let raw = fds.each_ref().map(AsRawFd::as_raw_fd);
        let (sender, report) = oneshot::channel();
        let refusals = self.refusals.begin(spawn.number);
        let mut sender = Some(sender);
        let send = |socket: &OwnedFd| {
            // The lock prevents the listener from handling the report before the command is in the table.
            let mut commands = lock(&self.commands);
            message::send(socket.as_raw_fd(), &SandboxRequest::<&Identity, &Spawn>::Spawn(spawn), &raw)?;
            if let Some(sender) = sender.take() {
                commands.insert(spawn.number, sender);
            }
            Ok(())
        };
        self.socket.async_io(Interest::WRITABLE, send).await.map_err(lost)?;
        let program = spawn.argv.first().cloned().unwrap_or_default();
        Ok(StartedCommand { report, program, folders: spawn.working_directories.join(", "), refusals })
    }

    /// Resolves when the sandbox has exited and can start no more commands.
    pub(crate) async fn exited(&self) {
        self.reached(|progress| progress.exited).await;
    }

    /// Waits until the progress meets a condition, or the sandbox has exited.
    async fn reached(&self, condition: impl Fn(&Progress) -> bool) -> Progress {
        let mut progress = self.progress.clone();
        let reached = progress.wait_for(|progress| progress.exited || condition(progress)).await;
        // The listener drops the sender only after the exit, or when the listener is aborted.
        reached.map_or(Progress { identities: 0, exited: true }, |reached| *reached)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.listener.abort();
        if let Some(refusing) = &self.refusing {
            refusing.abort();
        }
    }
}

impl StartedCommand {
    /// Returns the system calls of the command that the filter refused so far.
    pub(crate) fn refused(&self) -> Vec<RefusedCall> {
        self.refusals.calls()
    }

    /// Waits until the command has exited, and returns its raw wait status.
    pub(crate) async fn exited(&mut self) -> Result<c_int, Fault> {
        match (&mut self.report).await {
            Ok(SandboxReport::Exited { status, .. }) => Ok(status),
            Ok(SandboxReport::Failed { step, errno, .. }) => {
                Err(fault_of(&io::Error::from_raw_os_error(errno), &self.failed(step)))
            }
            Ok(SandboxReport::Identified) | Err(_) => {
                Err(fault(FaultKind::Other, format!("lost the sandbox that {} ran in", self.program)))
            }
        }
    }
}

impl StartedCommand {
    fn failed(&self, step: SpawnStep) -> String {
        let program = &self.program;
        match step {
            SpawnStep::Fork => format!("failed to create a process for {program}"),
            SpawnStep::Confine => format!("failed to confine {program}"),
            SpawnStep::WorkingDirectory => format!("failed to enter the working directory {}", self.folders),
            SpawnStep::Exec => format!("failed to start {program}"),
        }
    }
}

/// Forwards the sandbox's reports until the sandbox exits. Calls that still wait then get an error.
async fn listen(socket: Arc<AsyncFd<OwnedFd>>, commands: Commands, progress: watch::Sender<Progress>) {
    let mut buffer = [0; REPORT_BYTES_MAX];
    loop {
        let receive = |socket: &OwnedFd| message::receive::<SandboxReport>(socket.as_raw_fd(), &mut buffer);
        let command = match socket.async_io(Interest::READABLE, receive).await {
            Ok(Some((command, _no_fds))) => command,
            Ok(None) => break report("the sandbox has exited"),
            Err(source) => break report(&format!("failed to receive from the sandbox: {source}")),
        };
        let number = match command {
            SandboxReport::Identified => {
                progress.send_modify(|progress| progress.identities += 1);
                continue;
            }
            SandboxReport::Failed { number, .. } | SandboxReport::Exited { number, .. } => number,
        };
        let waiting = lock(&commands).remove(&number);
        // The call may have ended, so the report may have no receiver.
        let _received = waiting.map(|waiting| waiting.send(command));
    }
    lock(&commands).clear();
    progress.send_modify(|progress| progress.exited = true);
}
