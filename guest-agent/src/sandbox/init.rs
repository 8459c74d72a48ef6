// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The sandbox's init process: starts commands for the agent, and reaps commands and orphans.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
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
    launch::{self, ErrorPipe},
    message::{self, PACKET_BYTES_MAX, Ready, SandboxReport, SandboxRequest, Spawn},
};
use crate::{
    confine::{Defences, filter},
    console::{report, with_cause},
    identity::{BootIdFile, Identity},
    sandbox_user::Groups,
    step::StepFault,
    sys,
};

/// Delay between two attempts to send a report while the kernel is out of memory.
const SEND_RETRY: Duration = Duration::from_millis(20);

/// Maximum number of attempts to send a report; together they take about 10 s. If the last attempt fails, the sandbox
/// and the machine end.
const SEND_TRIES: u32 = 500;

/// Maximum number of children reaped before the socket is checked again, because new children may exit as fast as this
/// process reaps them.
const REAPED_AT_ONCE: usize = 256;

/// Runs until the agent closes its end of the socket. `groups` are those of the sandbox user. Returns the exit status:
/// 0 after the close, 1 after an error.
pub(super) fn run(socket: &OwnedFd, groups: &Groups, defences: Defences) -> i32 {
    match serve(socket, groups, defences) {
        Ok(()) => 0,
        Err(source) => {
            report(&format!("the sandbox failed: {source}"));
            1
        }
    }
}

fn serve(socket: &OwnedFd, groups: &Groups, defences: Defences) -> io::Result<()> {
    // Until its exec, a child is a copy of this process, so no other process may trace either of them.
    set_dumpable(false)?;
    let in_full = |fault: StepFault| io::Error::other(with_cause(&fault));
    // The filter with a listener forbids this process to mount.
    let mut boot_id = BootIdFile::mount().map_err(in_full)?;
    // The filters are compiled before any fork, so that children inherit them.
    let listener = if defences.filter { filter::prepare()? } else { None };
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    children.thread_block()?;
    let signals = SignalFd::with_flags(&children, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let mounts = File::open("/proc/self/ns/mnt")?;
    let fds = [Some(OwnedFd::from(mounts)), listener];
    let raw: Vec<RawFd> = fds.iter().flatten().map(AsRawFd::as_raw_fd).collect();
    message::send(socket.as_raw_fd(), &Ready, &raw)?;
    drop(fds);
    let mut commands = BTreeMap::new();
    let mut buffer = vec![0; PACKET_BYTES_MAX];
    let mut current: Option<Identity> = None;
    let mut more_to_reap = false;
    loop {
        let timeout = if more_to_reap { PollTimeout::ZERO } else { PollTimeout::NONE };
        let mut waits =
            [PollFd::new(socket.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        match poll(&mut waits, timeout) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        let [requested, died] = waits.map(|wait| wait.any().unwrap_or(false));
        if died {
            while signals.read_signal()?.is_some() {}
        }
        if died || more_to_reap {
            more_to_reap = reap(socket, &mut commands)?;
        }
        if requested {
            type Received = SandboxRequest<Identity, Spawn>;
            let received = message::receive::<Received>(socket.as_raw_fd(), &mut buffer)?;
            let (spawn, fds) = match received {
                Some((SandboxRequest::Spawn(spawn), fds)) => (spawn, fds),
                Some((SandboxRequest::Identify(identity), _no_fds)) => {
                    identity.apply(&mut boot_id, current.as_ref()).map_err(in_full)?;
                    current = Some(identity);
                    send(socket, SandboxReport::Identified)?;
                    continue;
                }
                None => return Ok(()),
            };
            if current.is_none() {
                return Err(io::Error::other("a command came before the machine's identity"));
            }
            let number = spawn.number;
            match launch::launch(&spawn, fds, groups, defences) {
                Ok((pid, errors)) => {
                    commands.insert(pid, (number, errors));
                }
                Err((step, errno)) => send(socket, SandboxReport::Failed { number, step, errno: errno as i32 })?,
            }
        }
    }
}

/// Reaps children that have exited, and reports the commands among them. Returns whether more children may have exited.
fn reap(socket: &OwnedFd, commands: &mut BTreeMap<Pid, (u64, ErrorPipe)>) -> io::Result<bool> {
    for _ in 0..REAPED_AT_ONCE {
        let (pid, status) = match sys::wait_raw(WaitPidFlag::WNOHANG) {
            Ok(Some(ended)) => ended,
            Ok(None) | Err(Errno::ECHILD) => return Ok(false),
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        };
        // A child that made this process its tracer is also returned when it stops or continues without exiting.
        if libc::WIFSTOPPED(status) || libc::WIFCONTINUED(status) {
            continue;
        }
        if let Some((number, errors)) = commands.remove(&pid) {
            let report = match errors.read() {
                Some((step, errno)) => SandboxReport::Failed { number, step, errno: errno as i32 },
                None => SandboxReport::Exited { number, status },
            };
            send(socket, report)?;
        }
    }
    Ok(true)
}

/// Sends a report to the agent. Retries while the kernel is out of memory, because the agent waits for the report.
/// Memory becomes free when the processes that used it up are killed.
fn send(socket: &OwnedFd, report: SandboxReport) -> io::Result<()> {
    let mut tries = 0;
    loop {
        tries += 1;
        match message::send(socket.as_raw_fd(), &report, &[]) {
            Err(fault) if tries < SEND_TRIES && matches!(fault.kind(), io::ErrorKind::OutOfMemory) => {
                thread::sleep(SEND_RETRY);
            }
            sent => return sent,
        }
    }
}
