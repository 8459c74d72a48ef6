// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The agent's side of the room: starts commands and hears how they end.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    libc::c_int,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::mpsc,
    task::AbortHandle,
};

use super::{
    Door,
    message::{self, PACKET_BYTES_MAX, SPAWN_FDS, Spawn, Step, Told},
};
use crate::{serve::report, sys};

/// A room in use. Dropping it ends the room, and with it everything that lives there.
#[derive(Debug)]
pub(crate) struct Room {
    socket: Arc<AsyncFd<OwnedFd>>,
    commands: Commands,
    listener: AbortHandle,
    mounts: OwnedFd,
}

/// Where word of each command goes. A command is in here from its packet's departure to its last word: two words at
/// most, so no channel is ever full.
type Commands = Arc<Mutex<HashMap<u64, mpsc::Sender<Told>>>>;

/// Words about one command: started and ended.
const WORDS_MAX: usize = 2;

/// A command that was started.
#[derive(Debug)]
pub(crate) struct Started {
    words: mpsc::Receiver<Told>,
}

/// A command was not started: what could not be done, and what the kernel said.
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
        let listener = tokio::spawn(listen(Arc::clone(&socket), Arc::clone(&commands))).abort_handle();
        Ok(Self { socket, commands, listener, mounts: door.mounts })
    }

    /// The room's mount namespace.
    pub(crate) fn mounts(&self) -> io::Result<OwnedFd> {
        self.mounts.try_clone()
    }

    /// Starts a command with its descriptors: stdin, stdout, stderr, and the door of its cgroup.
    pub(crate) async fn start(&self, spawn: &Spawn, fds: [OwnedFd; SPAWN_FDS]) -> Result<Started, StartFault> {
        let lost = |source| StartFault { what: "failed to reach the room that commands live in".to_owned(), source };
        let raw = fds.each_ref().map(AsRawFd::as_raw_fd);
        let (told, mut words) = mpsc::channel(WORDS_MAX);
        let send = |socket: &OwnedFd| {
            // The listener can't take the answer before the command is in the table.
            let mut commands = lock(&self.commands);
            message::send(socket.as_raw_fd(), spawn, &raw)?;
            commands.insert(spawn.number, told.clone());
            Ok(())
        };
        self.socket.async_io(Interest::WRITABLE, send).await.map_err(lost)?;
        drop(told);
        match words.recv().await {
            Some(Told::Failed { step, errno, .. }) => {
                Err(StartFault { what: what_failed(step, spawn), source: io::Error::from_raw_os_error(errno) })
            }
            Some(Told::Started { .. } | Told::Ended { .. }) => Ok(Started { words }),
            None => Err(lost(io::ErrorKind::BrokenPipe.into())),
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

impl Started {
    /// The command's raw wait status, once it has ended.
    pub(crate) async fn ended(&mut self) -> io::Result<c_int> {
        match self.words.recv().await {
            Some(Told::Ended { status, .. }) => Ok(status),
            Some(Told::Started { .. } | Told::Failed { .. }) | None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

/// Passes on what the room tells, until it is gone; whoever waits then hears that nothing more comes.
async fn listen(socket: Arc<AsyncFd<OwnedFd>>, commands: Commands) {
    let mut buffer = vec![0; PACKET_BYTES_MAX];
    loop {
        let received =
            socket.async_io(Interest::READABLE, |socket| message::receive::<Told>(socket.as_raw_fd(), &mut buffer));
        let told = match received.await {
            Ok(Some((told, _no_fds))) => told,
            Ok(None) => break report("the room is gone"),
            Err(source) => break report(&format!("failed to hear from the room: {source}")),
        };
        let (number, last) = match told {
            Told::Started { number } => (number, false),
            Told::Failed { number, .. } | Told::Ended { number, .. } => (number, true),
        };
        let mut commands = lock(&commands);
        // The call may be over and have nobody listening.
        let _heard = commands.get(&number).map(|told_to| told_to.try_send(told));
        if last {
            commands.remove(&number);
        }
    }
    lock(&commands).clear();
}

fn lock<'a>(commands: &'a Commands) -> MutexGuard<'a, HashMap<u64, mpsc::Sender<Told>>> {
    commands.lock().unwrap_or_else(PoisonError::into_inner)
}

fn what_failed(step: Step, spawn: &Spawn) -> String {
    let program = spawn.argv.first().map_or("", String::as_str);
    match step {
        Step::Fork => format!("failed to make a process for {program}"),
        Step::Cgroup => format!("failed to put {program} into its control group"),
        Step::Confine => format!("failed to confine {program}"),
        Step::WorkingDirectory => format!("failed to enter the working directory {}", spawn.working_directory),
        Step::Exec => format!("failed to start {program}"),
    }
}
