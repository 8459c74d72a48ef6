// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The agent's side of the room: starts commands and hears how they end.

use std::{
    collections::HashMap,
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

use super::{
    Door,
    message::{self, SPAWN_FDS, Spawn, Step, Told},
};
use crate::{console::report, mutex::lock, sys};

/// A room in use. Dropping it ends the room, and with it everything that lives there.
#[derive(Debug)]
pub(crate) struct Room {
    socket: Arc<AsyncFd<OwnedFd>>,
    commands: Commands,
    listener: AbortHandle,
    mounts: OwnedFd,
    gone: watch::Receiver<bool>,
}

/// Where the one word about each command goes. A command is in here from its packet's departure to that word.
type Commands = Arc<Mutex<HashMap<u64, oneshot::Sender<Told>>>>;

/// Largest packet of [`Told`], in bytes.
const TOLD_BYTES_MAX: usize = 64;

/// A command that the room was told to start.
#[derive(Debug)]
pub(crate) struct Started {
    told: oneshot::Receiver<Told>,
    program: String,
}

/// A command did not come to run: what could not be done, and what the kernel said.
#[derive(Debug)]
pub(crate) struct StartFault {
    pub(crate) what: String,
    pub(crate) source: io::Error,
}

impl Room {
    /// Starts to use a room. Needs a runtime.
    pub(crate) fn enter(door: Door) -> io::Result<Self> {
        fcntl(&door.socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let socket = Arc::new(sys::watch(door.socket, Interest::READABLE | Interest::WRITABLE)?);
        let commands = Commands::default();
        let (tell_gone, gone) = watch::channel(false);
        let listener = tokio::spawn(listen(Arc::clone(&socket), Arc::clone(&commands), tell_gone)).abort_handle();
        Ok(Self { socket, commands, listener, mounts: door.mounts, gone })
    }

    /// The room's mount namespace.
    pub(crate) fn mounts(&self) -> io::Result<OwnedFd> {
        self.mounts.try_clone()
    }

    /// Has a command started with its descriptors: stdin, stdout, stderr, and its cgroup. How that goes is told when it
    /// has ended.
    pub(crate) async fn start(&self, spawn: &Spawn, fds: [OwnedFd; SPAWN_FDS]) -> Result<Started, StartFault> {
        let lost = |source| StartFault { what: "failed to reach the room that commands live in".to_owned(), source };
        let raw = fds.each_ref().map(AsRawFd::as_raw_fd);
        let (word, told) = oneshot::channel();
        let mut word = Some(word);
        let send = |socket: &OwnedFd| {
            // The listener can't take the answer before the command is in the table.
            let mut commands = lock(&self.commands);
            message::send(socket.as_raw_fd(), spawn, &raw)?;
            if let Some(word) = word.take() {
                commands.insert(spawn.number, word);
            }
            Ok(())
        };
        self.socket.async_io(Interest::WRITABLE, send).await.map_err(lost)?;
        Ok(Started { told, program: spawn.argv.first().cloned().unwrap_or_default() })
    }

    /// Resolves when the room is gone, and nothing can be started any more.
    pub(crate) async fn gone(&self) {
        let mut gone = self.gone.clone();
        // A listener that is gone has taken the sender with it.
        let _gone = gone.wait_for(|gone| *gone).await;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

impl Started {
    /// The command's raw wait status, once it has ended.
    pub(crate) async fn ended(&mut self) -> Result<c_int, StartFault> {
        match (&mut self.told).await {
            Ok(Told::Ended { status, .. }) => Ok(status),
            Ok(Told::Failed { step, errno, .. }) => {
                Err(StartFault { what: what_failed(step, &self.program), source: io::Error::from_raw_os_error(errno) })
            }
            Err(_room_gone) => {
                let what = format!("lost the room in which {} ran", self.program);
                Err(StartFault { what, source: io::ErrorKind::BrokenPipe.into() })
            }
        }
    }
}

/// Passes on what the room tells, until it is gone; whoever waits then hears that nothing comes.
async fn listen(socket: Arc<AsyncFd<OwnedFd>>, commands: Commands, gone: watch::Sender<bool>) {
    let mut buffer = [0; TOLD_BYTES_MAX];
    loop {
        let received =
            socket.async_io(Interest::READABLE, |socket| message::receive::<Told>(socket.as_raw_fd(), &mut buffer));
        let told = match received.await {
            Ok(Some((told, _no_fds))) => told,
            Ok(None) => break report("the room is gone"),
            Err(source) => break report(&format!("failed to hear from the room: {source}")),
        };
        let (Told::Failed { number, .. } | Told::Ended { number, .. }) = told;
        let waiting = lock(&commands).remove(&number);
        // The call may be over and have nobody listening.
        let _heard = waiting.map(|waiting| waiting.send(told));
    }
    lock(&commands).clear();
    gone.send_replace(true);
}

fn what_failed(step: Step, program: &str) -> String {
    match step {
        Step::Fork => format!("failed to make a process for {program}"),
        Step::Confine => format!("failed to confine {program}"),
        Step::WorkingDirectory => format!("failed to enter the working directory of {program}"),
        Step::Exec => format!("failed to start {program}"),
    }
}
