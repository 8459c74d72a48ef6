// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The room's first process: starts commands as the agent asks, and reaps them and every orphan of the room.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        prctl::set_dumpable,
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        wait::WaitPidFlag,
    },
    unistd::Pid,
};

use super::{
    launch::{self, Fate},
    message::{self, PACKET_BYTES_MAX, Ready, Spawn, Told},
};
use crate::{
    confine::{Defences, filter},
    console::report,
    sys,
};

/// Between two tries to tell the agent something, for want of memory.
const TELL_RETRY: Duration = Duration::from_millis(20);

/// Tries before the room gives up, and with it the machine: 10 s.
const TELL_TRIES: u32 = 500;

/// Children reaped before the socket is looked at again: children may die as fast as they are reaped.
const REAPED_AT_ONCE: usize = 256;

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
    // A child is a copy of this process until it has exec'd: nobody may trace it.
    set_dumpable(false)?;
    // Compiled here once, every child has the filters ready.
    if defences.filter {
        filter::compile()?;
    }
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    children.thread_block()?;
    let signals = SignalFd::with_flags(&children, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let mounts = File::open("/proc/self/ns/mnt")?;
    message::send(socket.as_raw_fd(), &Ready, &[mounts.as_raw_fd()])?;
    drop(mounts);
    let mut commands = HashMap::new();
    let mut buffer = vec![0; PACKET_BYTES_MAX];
    let mut more_to_reap = false;
    loop {
        let patience = if more_to_reap { PollTimeout::ZERO } else { PollTimeout::NONE };
        let mut waits =
            [PollFd::new(socket.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        match poll(&mut waits, patience) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        let [asked, died] = waits.map(|wait| wait.any().unwrap_or(false));
        if died {
            while signals.read_signal()?.is_some() {}
        }
        if died || more_to_reap {
            more_to_reap = reap(socket, &mut commands)?;
        }
        if asked {
            let Some((spawn, fds)) = message::receive::<Spawn>(socket.as_raw_fd(), &mut buffer)? else { return Ok(()) };
            let number = spawn.number;
            match launch::launch(&spawn, fds, defences) {
                Ok((pid, fate)) => {
                    commands.insert(pid, (number, fate));
                }
                Err((step, errno)) => tell(socket, Told::Failed { number, step, errno: errno as i32 })?,
            }
        }
    }
}

/// Reaps children that have died, and tells of those that are commands. Returns whether there may be more.
fn reap(socket: &OwnedFd, commands: &mut HashMap<Pid, (u64, Fate)>) -> io::Result<bool> {
    for _ in 0..REAPED_AT_ONCE {
        let (pid, status) = match sys::wait_raw(WaitPidFlag::WNOHANG) {
            Ok(Some(ended)) => ended,
            Ok(None) | Err(Errno::ECHILD) => return Ok(false),
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        };
        // A child that made this process its tracer is told to have stopped; it goes on all the same.
        if libc::WIFSTOPPED(status) || libc::WIFCONTINUED(status) {
            continue;
        }
        if let Some((number, fate)) = commands.remove(&pid) {
            let told = match fate.fault() {
                Some((step, errno)) => Told::Failed { number, step, errno: errno as i32 },
                None => Told::Ended { number, status },
            };
            tell(socket, told)?;
        }
    }
    Ok(true)
}

/// Tells the agent. A kernel that is short of memory is asked again: the word is owed, and the memory comes back when
/// what took it is killed.
fn tell(socket: &OwnedFd, told: Told) -> io::Result<()> {
    let mut tries = 0;
    loop {
        tries += 1;
        match message::send(socket.as_raw_fd(), &told, &[]) {
            Err(fault) if tries < TELL_TRIES && matches!(fault.kind(), io::ErrorKind::OutOfMemory) => {
                thread::sleep(TELL_RETRY);
            }
            sent => return sent,
        }
    }
}
