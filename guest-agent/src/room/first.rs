// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The room's first process: starts commands as the agent asks, and reaps them and every orphan of the room.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        wait::WaitPidFlag,
    },
    unistd::Pid,
};

use super::{
    launch,
    message::{self, PACKET_BYTES_MAX, Ready, Spawn, Told},
};
use crate::{confine::Defences, serve::report, sys};

/// Lives until the agent closes its end; the exit status says whether that is what happened.
pub(super) fn live(socket: &OwnedFd, defences: Defences) -> i32 {
    match serve(socket, defences) {
        Ok(()) => 0,
        Err(source) => {
            report(&format!("the room failed: {source}"));
            1
        }
    }
}

fn serve(socket: &OwnedFd, defences: Defences) -> io::Result<()> {
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    children.thread_block()?;
    let signals = SignalFd::with_flags(&children, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let mounts = File::open("/proc/self/ns/mnt")?;
    message::send(socket.as_raw_fd(), &Ready, &[mounts.as_raw_fd()])?;
    drop(mounts);
    let mut commands = HashMap::new();
    let mut buffer = vec![0; PACKET_BYTES_MAX];
    loop {
        let mut waits =
            [PollFd::new(socket.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        match poll(&mut waits, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        let [asked, died] = waits.map(|wait| wait.any().unwrap_or(false));
        if died {
            while signals.read_signal()?.is_some() {}
            reap(socket, &mut commands)?;
        }
        if asked {
            let Some((spawn, fds)) = message::receive::<Spawn>(socket.as_raw_fd(), &mut buffer)? else { return Ok(()) };
            let number = spawn.number;
            let told = match launch::launch(&spawn, fds, defences) {
                Ok(pid) => {
                    commands.insert(pid, number);
                    Told::Started { number }
                }
                Err((step, errno)) => Told::Failed { number, step, errno: errno as i32 },
            };
            message::send(socket.as_raw_fd(), &told, &[])?;
        }
    }
}

/// Reaps whatever has died, and tells of those that are commands.
fn reap(socket: &OwnedFd, commands: &mut HashMap<Pid, u64>) -> io::Result<()> {
    loop {
        let (pid, status) = match sys::wait_raw(WaitPidFlag::WNOHANG) {
            Ok(Some(ended)) => ended,
            Ok(None) | Err(Errno::ECHILD) => return Ok(()),
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        };
        if let Some(number) = commands.remove(&pid) {
            message::send(socket.as_raw_fd(), &Told::Ended { number, status }, &[])?;
        }
    }
}
