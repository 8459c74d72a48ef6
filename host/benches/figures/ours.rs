// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! waggle's side of a comparison: an agent in a machine, or one on this machine behind a Unix socket.

use std::{
    fs,
    os::{fd::OwnedFd, unix::net::UnixStream as Socket},
    process::{Child, Command as Program, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use guest_agent::{Guest, Work};
use tempfile::TempDir;
use tokio::{net::UnixStream, sync::oneshot, time::sleep};
use waggle::{
    agent::{self, AgentClient, Patience},
    domain::{
        call_fault::CallFault,
        command::{Command, EndCause, Executed, OutputStream, User},
        file::Writing,
        guest_path::GuestPath,
        machine::{Machine, PortFuture},
    },
};
use waggle_protocol::Origin;

use crate::{calls::command, stats::timed};

/// The word that makes this program a local agent.
pub(crate) const SUBCOMMAND: &str = "local-agent";

/// From the last process's start to the order to kill, so that all of them sleep by then.
pub(crate) const SETTLED: Duration = Duration::from_millis(200);

/// Ten processes that a kill has to end: a shell and nine that sleep. The shell tells its number first.
pub(crate) const BROOD: &str = "echo $$; for i in 1 2 3 4 5 6 7 8 9; do sleep 1000 & done; wait";

pub(crate) enum Ours {
    Machine(Arc<dyn Machine>),
    Local { agent: Box<AgentClient>, process: Child, _root: TempDir },
}

impl Ours {
    /// Starts the agent as a process of its own on this machine.
    pub(crate) async fn local() -> Self {
        let root = tempfile::Builder::new().prefix("wb-").tempdir_in("/tmp").unwrap();
        for folder in ["home/sandbox", "tmp"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        let (near, far) = Socket::pair().unwrap();
        let mut program = Program::new(std::env::current_exe().unwrap());
        let process = program.arg(SUBCOMMAND).arg(root.path()).stdin(Stdio::from(OwnedFd::from(far))).spawn().unwrap();
        drop(program);
        near.set_nonblocking(true).unwrap();
        let agent = agent::connect(UnixStream::from_std(near).unwrap(), Patience::default()).await.unwrap();
        Self::Local { agent: Box::new(agent), process, _root: root }
    }

    async fn exec(
        &self,
        command: Command,
        cancelled: PortFuture<'_, ()>,
        on_output: &mut (dyn FnMut(OutputStream, &[u8]) + Send),
    ) -> Result<Executed, CallFault> {
        match self {
            Self::Machine(machine) => machine.agent().exec(command, cancelled, on_output).await,
            Self::Local { agent, .. } => agent.exec(command, cancelled, on_output).await,
        }
    }

    /// The time of one call that does nothing.
    pub(crate) async fn run_true(&self) -> Duration {
        let (time, ended) =
            timed(self.exec(command(&["/bin/true"]), Box::pin(std::future::pending()), &mut |_, _| {})).await;
        assert_eq!(ended.unwrap().exit_code, 0);
        time
    }

    /// Runs a shell's command as root.
    pub(crate) async fn as_root(&self, line: &str, stdin: &str) {
        let run = Command { user: User::Root, stdin: stdin.into(), ..command(&["/bin/sh", "-c", line]) };
        let ended = self.exec(run, Box::pin(std::future::pending()), &mut |_, _| {}).await.unwrap();
        assert_eq!(ended.exit_code, 0, "{line}");
    }

    pub(crate) async fn write(&self, path: &str, content: &[u8], mode: Option<u32>) -> Duration {
        let (path, how) = (GuestPath::parse(path).unwrap(), Writing { mode, append: false });
        let (time, written) = match self {
            Self::Machine(machine) => timed(machine.agent().write_file(&path, content, how)).await,
            Self::Local { agent, .. } => timed(agent.write_file(&path, content, how)).await,
        };
        assert_eq!(written.unwrap(), content.len() as u64);
        time
    }

    pub(crate) async fn read(&self, path: &str, bytes: usize) -> Duration {
        let path = GuestPath::parse(path).unwrap();
        let (time, read) = match self {
            Self::Machine(machine) => timed(machine.agent().read_file(&path, None, bytes as u64)).await,
            Self::Local { agent, .. } => timed(agent.read_file(&path, None, bytes as u64)).await,
        };
        assert_eq!(read.unwrap().bytes.len(), bytes);
        time
    }

    /// From the cancel of ten processes to the last reply, which comes when none of them is left.
    pub(crate) async fn kill(&self) -> Duration {
        let (ready, told) = oneshot::channel();
        let (killing, killed_at) = oneshot::channel();
        let mut ready = Some(ready);
        let cancelled = Box::pin(async move {
            told.await.unwrap();
            sleep(SETTLED).await;
            killing.send(Instant::now()).unwrap();
        });
        let mut on_output = |_, _: &[u8]| {
            if let Some(ready) = ready.take() {
                ready.send(()).unwrap();
            }
        };
        let ended = self.exec(command(&["/bin/sh", "-c", BROOD]), cancelled, &mut on_output).await.unwrap();
        let died = Instant::now();
        assert_eq!(ended.cause, EndCause::Cancelled);
        died - killed_at.await.unwrap()
    }

    pub(crate) async fn end(self) {
        match self {
            Self::Machine(machine) => machine.stop().await,
            Self::Local { agent, mut process, .. } => {
                agent.power_off().await;
                process.wait().unwrap();
            }
        }
    }
}

/// Serves on the socket that is this process's stdin, on one thread as in a machine.
pub(crate) fn serve_locally(root: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let socket = Socket::from(std::os::fd::AsFd::as_fd(&std::io::stdin()).try_clone_to_owned().unwrap());
    socket.set_nonblocking(true).unwrap();
    let env = vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())];
    let guest = Guest { origin: Origin::Host, root: root.into(), work: Work::Caller, env, working_directory: None };
    runtime.block_on(async { guest_agent::serve(UnixStream::from_std(socket).unwrap(), guest, || {}).await }).unwrap();
}
