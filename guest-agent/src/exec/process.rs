// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! A command that runs: in the room and in a control group of its own, or as the agent's own child where the agent
//! works as its caller.

use std::{
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    path::Path,
    process::{ExitStatus, Stdio},
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
use waggle_protocol::{
    Fault, FaultKind,
    request::{Exec, User},
};

use crate::{
    cgroups::CallGroup,
    console::report,
    fault::fault_of,
    guest::{HOME, Served},
    room::{Room, Spawn, Started},
};

/// Open files of one process where the host names no limit: what most systems give.
const OPEN_FILES: u64 = 4096;

/// Longest wait for word of a leader that was killed.
const REAPED_MAX: Duration = Duration::from_secs(1);

/// A command and how it ended. Dropping it before it has ended kills it with all that it started.
pub(super) struct Process {
    means: Means,
    status: Option<Result<ExitStatus, Fault>>,
    over: bool,
}

enum Means {
    Room { started: Started, group: CallGroup },
    Child { child: Child, leader: Option<Pid> },
}

impl Process {
    /// Starts the command that `request` describes, with its stdin, stdout and stderr.
    pub(super) async fn start(
        served: &Served,
        request: &Exec,
        script: Option<&Path>,
        stdio: [OwnedFd; 3],
    ) -> Result<Self, Fault> {
        let means = match &served.room {
            Some(room) => start_in_room(room, served, request, script, stdio).await?,
            None => start_child(served, request, script, stdio)?,
        };
        Ok(Self { means, status: None, over: false })
    }

    /// Resolves when the command has exited; its status is kept.
    pub(super) async fn exited(&mut self) {
        if self.status.is_none() {
            self.status = Some(match &mut self.means {
                Means::Room { started, .. } => match started.ended().await {
                    Ok(status) => Ok(ExitStatus::from_raw(status)),
                    Err(fault) => Err(fault_of(&fault.source, &fault.what)),
                },
                Means::Child { child, .. } => {
                    child.wait().await.map_err(|source| fault_of(&source, "failed to wait for the command"))
                }
            });
        }
    }

    /// Kills everything that the command started, and resolves when all of it is gone.
    pub(super) async fn kill(&mut self) {
        match &self.means {
            Means::Room { group, .. } => {
                if let Err(source) = group.kill().await {
                    // What is killed is dead, though the kernel may hold on to it for a while.
                    report(&format!("a killed call is not gone yet: {source}"));
                }
            }
            Means::Child { leader, .. } => kill_session(*leader),
        }
        // Its tracer can keep a dead leader from being reaped; it is dead all the same.
        if timeout(REAPED_MAX, self.exited()).await.is_err() {
            self.status = Some(Ok(ExitStatus::from_raw(Signal::SIGKILL as i32)));
        }
    }

    /// Takes the status. What the command left in the background may live on from here.
    pub(super) fn leave(&mut self) -> Option<Result<ExitStatus, Fault>> {
        self.over = true;
        self.status.take()
    }

    /// Whether the kernel killed something of the command's for want of memory.
    pub(super) fn was_out_of_memory(&self) -> bool {
        match &self.means {
            Means::Room { group, .. } => group.memory_kills() > 0,
            Means::Child { .. } => false,
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        match &self.means {
            Means::Room { group, .. } => group.kill_and_forget(),
            Means::Child { leader, .. } => kill_session(*leader),
        }
    }
}

/// Kills a group that has no process yet to own it.
struct KillOnDrop(Option<CallGroup>);

impl KillOnDrop {
    fn disarm(mut self) -> Result<CallGroup, Fault> {
        let gone = || Fault { kind: FaultKind::Other, message: "the call has no control group".to_owned() };
        self.0.take().ok_or_else(gone)
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(group) = &self.0 {
            group.kill_and_forget();
        }
    }
}

fn kill_session(leader: Option<Pid>) {
    if let Some(leader) = leader {
        // A group that is gone already needs no signal.
        let _signalled = killpg(leader, Signal::SIGKILL);
    }
}

async fn start_in_room(
    room: &Room,
    served: &Served,
    request: &Exec,
    script: Option<&Path>,
    [stdin, stdout, stderr]: [OwnedFd; 3],
) -> Result<Means, Fault> {
    let number = served.next_number();
    let failed = |source| fault_of(&source, "failed to make the command's control group");
    let group = served.groups.create(number, request.limits).map_err(failed)?;
    let cgroup = group.open().map_err(failed)?;
    let mut argv = request.argv.clone();
    argv.extend(script.map(|path| path.display().to_string()));
    let mut env = served.command_env(request.user == User::Root);
    env.extend(request.env.iter().cloned());
    let spawn = Spawn {
        number,
        argv,
        env: last_of_each_name(env),
        working_directories: working_directories(served, request),
        user: request.user,
        open_files_max: request.limits.open_files.map_or(OPEN_FILES, u64::from),
    };
    // Whatever comes to live in the group from here on is killed if nobody waits for the answer.
    let guard = KillOnDrop(Some(group));
    let started = room.start(&spawn, [stdin, stdout, stderr, cgroup]).await;
    let started = started.map_err(|fault| fault_of(&fault.source, &fault.what))?;
    Ok(Means::Room { started, group: guard.disarm()? })
}

fn start_child(
    served: &Served,
    request: &Exec,
    script: Option<&Path>,
    [stdin, stdout, stderr]: [OwnedFd; 3],
) -> Result<Means, Fault> {
    let (program, arguments) = request
        .argv
        .split_first()
        .ok_or_else(|| Fault { kind: FaultKind::BadRequest, message: "a command needs a program".to_owned() })?;
    let mut command = Command::new(program);
    command.args(arguments).args(script);
    command.env_clear().envs(served.command_env(request.user == User::Root)).envs(request.env.iter().cloned());
    // What the system says of a missing program and of a missing folder is the same, so it is looked for before.
    let folders = working_directories(served, request);
    let found = folders.iter().map(|folder| served.place(folder)).find(|folder| folder.is_dir());
    let missing = || Fault {
        kind: FaultKind::NotFound,
        message: format!("failed to enter the working directory {}: there is none", folders.join(", ")),
    };
    command.current_dir(found.ok_or_else(missing)?);
    command.stdin(Stdio::from(stdin)).stdout(Stdio::from(stdout)).stderr(Stdio::from(stderr));
    command.process_group(0).kill_on_drop(true);
    let child = command.spawn().map_err(|source| fault_of(&source, &format!("failed to start {program}")))?;
    let leader = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    Ok(Means::Child { child, leader })
}

/// The folders that a command may start in, the first that it can enter counts; a relative one is taken from the home.
/// The image's own word is a wish: its folder may have gone since, or be closed to the user.
fn working_directories(served: &Served, request: &Exec) -> Vec<String> {
    match &request.working_directory {
        None => served.working_directory().into_iter().chain([HOME]).map(str::to_owned).collect(),
        Some(folder) => vec![Path::new(HOME).join(folder).display().to_string()],
    }
}

/// A name that occurs twice would be in the environment twice, and programs disagree on which one counts.
fn last_of_each_name(env: Vec<(String, String)>) -> Vec<(String, String)> {
    let by_name: std::collections::BTreeMap<_, _> = env.into_iter().collect();
    by_name.into_iter().collect()
}
