// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! A running command: a process in the sandbox with its own control group or, with [`Platform::Caller`], a child of the
//! agent.

use std::{
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    process::{ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    time::timeout,
};
use waggle_protocol::{Fault, FaultKind, reply::RefusedCall, request::Exec};

use crate::{
    cgroups::{CallGroup, CallGroups},
    command_settings::CommandSettings,
    confine::open_files_max,
    console::report,
    fault::{fault, fault_of},
    platform::Platform,
    sandbox::{Sandbox, Spawn, StartedCommand},
    sandbox_user::{HOME, from_home},
};

/// Timeout for the exit status of a command's first process after the kill.
const REAPED_MAX: Duration = Duration::from_secs(1);

/// Starts commands.
#[derive(Debug)]
pub(super) struct Launcher {
    pub(super) platform: Arc<Platform>,
    settings: Arc<CommandSettings>,
    pub(super) groups: CallGroups,
    next_number: AtomicU64,
}

/// A command and its exit status. Dropping it before [`Process::take_status`] kills all processes of the command.
pub(super) struct Process {
    handle: Handle,
    status: Option<Result<ExitStatus, Fault>>,
    finished: bool,
}

enum Handle {
    Sandboxed { started: StartedCommand, group: CallGroup },
    Child { child: Child, leader: Option<Pid> },
}

impl Launcher {
    pub(super) fn new(platform: Arc<Platform>, settings: Arc<CommandSettings>) -> Self {
        Self { platform, settings, groups: CallGroups::default(), next_number: AtomicU64::new(1) }
    }

    /// Starts the command of `request`, with further arguments and with its stdin, stdout and stderr.
    pub(super) async fn start(
        &self,
        request: &Exec,
        arguments: Vec<String>,
        stdio: [OwnedFd; 3],
    ) -> Result<Process, Fault> {
        let argv = [request.argv.clone(), arguments].concat();
        let handle = match &*self.platform {
            Platform::Machine(sandbox) => self.start_in(sandbox, request, argv, stdio).await?,
            Platform::Caller => self.start_child(request, &argv, stdio)?,
        };
        Ok(Process { handle, status: None, finished: false })
    }

    async fn start_in(
        &self,
        sandbox: &Sandbox,
        request: &Exec,
        argv: Vec<String>,
        [stdin, stdout, stderr]: [OwnedFd; 3],
    ) -> Result<Handle, Fault> {
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let failed = |source| fault_of(&source, "failed to create the control group of the command");
        let group = self.groups.create(number, request.limits).map_err(failed)?;
        let cgroup = group.open().map_err(failed)?;
        let mut env = self.settings.env(request.user);
        env.extend(request.env.iter().cloned());
        let spawn = Spawn {
            number,
            argv,
            env: env.into_iter().collect(),
            working_directories: self.working_directories(request),
            user: request.user,
            open_files_max: request.limits.open_files.map_or(u64::MAX, u64::from).min(open_files_max()),
        };
        let started = sandbox.start(&spawn, [stdin, stdout, stderr, cgroup]).await?;
        Ok(Handle::Sandboxed { started, group })
    }

    fn start_child(
        &self,
        request: &Exec,
        argv: &[String],
        [stdin, stdout, stderr]: [OwnedFd; 3],
    ) -> Result<Handle, Fault> {
        let (program, arguments) = argv.split_first().ok_or_else(no_program)?;
        let mut command = Command::new(program);
        command.args(arguments);
        command.env_clear().envs(self.settings.env(request.user)).envs(request.env.iter().cloned());
        // The system's error is the same for a missing program and a missing folder, so the folder is checked first.
        let folders = self.working_directories(request);
        let found = folders.iter().map(|folder| self.settings.agent_path(folder)).find(|folder| folder.is_dir());
        let missing = || {
            let message = format!("failed to enter the working directory {}: not found", folders.join(", "));
            fault(FaultKind::NotFound, message)
        };
        command.current_dir(found.ok_or_else(missing)?);
        command.stdin(Stdio::from(stdin)).stdout(Stdio::from(stdout)).stderr(Stdio::from(stderr));
        command.process_group(0).kill_on_drop(true);
        let child = command.spawn().map_err(|source| fault_of(&source, &format!("failed to start {program}")))?;
        let leader = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        Ok(Handle::Child { child, leader })
    }

    /// Returns the candidate folders for the start of a command; the first one that the user can enter is used. A
    /// relative folder is relative to the home. The image's own folder has a fallback, because the folder may be
    /// missing or inaccessible to the user.
    fn working_directories(&self, request: &Exec) -> Vec<String> {
        match &request.working_directory {
            None => self.settings.working_directory.as_deref().into_iter().chain([HOME]).map(str::to_owned).collect(),
            Some(folder) => vec![from_home(folder).display().to_string()],
        }
    }
}

impl Process {
    /// Resolves when the command has exited, and stores its status.
    pub(super) async fn exited(&mut self) {
        if self.status.is_none() {
            self.status = Some(match &mut self.handle {
                Handle::Sandboxed { started, .. } => started.exited().await.map(ExitStatus::from_raw),
                Handle::Child { child, .. } => {
                    child.wait().await.map_err(|source| fault_of(&source, "failed to wait for the command"))
                }
            });
        }
    }

    /// Asks everything that the command started to end, and resolves when all of it has ended.
    pub(super) async fn terminate(&mut self) {
        match &mut self.handle {
            Handle::Sandboxed { group, .. } => {
                // After an error, the kill that follows is all that can be done.
                if group.terminate().await.is_err() || group.empty().await.is_err() {
                    std::future::pending().await
                }
            }
            Handle::Child { leader, .. } => {
                signal_process_group(*leader, Signal::SIGTERM);
                self.exited().await;
            }
        }
    }

    /// Kills everything that the command started, and resolves when the processes have exited or a timeout has passed.
    pub(super) async fn kill(&mut self) {
        match &self.handle {
            Handle::Sandboxed { group, .. } => {
                if let Err(source) = group.kill().await {
                    // The kernel may need more time to remove a killed process.
                    report(&format!("failed to end all processes of a call: {source}"));
                }
            }
            Handle::Child { leader, .. } => signal_process_group(*leader, Signal::SIGKILL),
        }
        // A tracer can prevent the first process from being reaped, although the process is dead.
        if timeout(REAPED_MAX, self.exited()).await.is_err() {
            self.status = Some(Ok(ExitStatus::from_raw(Signal::SIGKILL as i32)));
        }
    }

    /// Returns the status and clears it. From now on, a drop no longer kills background processes of the command.
    pub(super) fn take_status(&mut self) -> Option<Result<ExitStatus, Fault>> {
        self.finished = true;
        if let Handle::Sandboxed { group, .. } = &mut self.handle {
            group.keep_on_drop();
        }
        self.status.take()
    }

    /// Returns the system calls of the command that the filter refused.
    pub(super) fn refused(&self) -> Vec<RefusedCall> {
        match &self.handle {
            Handle::Sandboxed { started, .. } => started.refused(),
            Handle::Child { .. } => Vec::new(),
        }
    }

    /// Returns whether the OOM killer killed a process of the command.
    pub(super) fn was_out_of_memory(&self) -> bool {
        match &self.handle {
            Handle::Sandboxed { group, .. } => group.memory_kills() > 0,
            Handle::Child { .. } => false,
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Handle::Child { leader, .. } = &self.handle
            && !self.finished
        {
            signal_process_group(*leader, Signal::SIGKILL);
        }
    }
}

fn signal_process_group(leader: Option<Pid>, signal: Signal) {
    if let Some(leader) = leader {
        // The call fails if the process group no longer exists.
        let _signalled = killpg(leader, signal);
    }
}

pub(super) fn no_program() -> Fault {
    fault(FaultKind::BadRequest, "argv must not be empty")
}
