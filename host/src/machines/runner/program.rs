// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! A process that the runner has started, and the wait for whichever ends first.

use std::{
    ffi::OsString,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            net::UnixStream,
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::Path,
    process::{Command, ExitStatus, Stdio},
};

use nix::{
    sched::unshare,
    sys::{
        signal::{SigSet, Signal as NixSignal},
        signalfd::{SfdFlags, SignalFd},
    },
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{
        Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitOptions, getpid, pidfd_open, pidfd_send_signal, waitid,
        waitpid,
    },
};

use super::memory::KillCount;
use crate::machines::{
    confine::Walls,
    runner_messages::Report,
    sys::{self, ForkedInto},
};

/// The exit code of a copy whose runner has ended before it was born; nobody reads it.
const ORPHANED: i32 = 122;
/// The exit code of a copy that did not become its program, and has said why.
const NOT_STARTED: i32 = 123;

/// A started process; dropping it kills it and waits for its end.
pub(super) struct Program {
    name: String,
    pid: Pid,
    pidfd: OwnedFd,
    status: Option<ExitStatus>,
    kills: KillCount,
}

impl Program {
    /// Starts another program, inside these walls.
    pub(super) fn start(path: &Path, arguments: Vec<OsString>, stdout: Stdio, walls: &Walls) -> Result<Self, Report> {
        let fault = |source: io::Error| not_started(format!("start {}", path.display()), &source);
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
        let (mut told, telling) = UnixStream::pair().map_err(fault)?;
        let mut command = Command::new(path);
        command.args(arguments).env_clear().stdin(Stdio::null()).stdout(stdout).process_group(0);
        // A namespace for the next child would be for all that follow, so this one is born into it.
        let forked = || sys::fork_to_execute(walls.namespaces.at_birth());
        let program = Self::copied(&name, forked, || {
            let fault = walls.put_up().map_or_else(|fault| fault, |()| command.exec());
            // The runner may be gone; then nobody wants to know.
            let _ = write!(&telling, "{fault}");
            NOT_STARTED
        })
        .map_err(fault)?;
        drop(telling);
        let mut cause = String::new();
        told.read_to_string(&mut cause).map_err(fault)?;
        if cause.is_empty() { Ok(program) } else { Err(fault(io::Error::other(cause))) }
    }

    /// Goes on in a copy of this process, the only one: `life` is its whole life, walls included, and its exit code.
    pub(super) fn fork(name: &str, walls: &Walls, life: impl FnOnce() -> i32) -> Result<Self, Report> {
        let forked = || {
            unshare(walls.namespaces.at_birth())?;
            sys::fork_single_threaded()
        };
        Self::copied(name, forked, life).map_err(|fault| not_started(format!("start {name}"), &fault))
    }

    fn copied(
        name: &str,
        forked: impl FnOnce() -> io::Result<ForkedInto>,
        life: impl FnOnce() -> i32,
    ) -> io::Result<Self> {
        let runner = pidfd_open(getpid(), PidfdFlags::empty())?;
        let pid = match forked()? {
            ForkedInto::Child => sys::exit_now(if sys::die_with(&runner).is_ok() { life() } else { ORPHANED }),
            ForkedInto::Parent(pid) => pid,
        };
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self { name: name.to_owned(), pid, pidfd, status: None, kills: KillCount::now() })
    }

    /// Its name, for people.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// How it ended; waits for that.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        while self.status.is_none() {
            match waitpid(Some(self.pid), WaitOptions::empty()) {
                Ok(Some((_, status))) => self.status = Some(ExitStatus::from_raw(status.as_raw())),
                Ok(None) | Err(Errno::INTR) => {}
                Err(_) => return None,
            }
        }
        self.status
    }

    /// Whether it was killed, and by the kernel, for want of memory.
    pub(super) fn ran_out_of_memory(&mut self) -> bool {
        let kill = Some(Signal::KILL.as_raw());
        self.ended().is_some_and(|status| status.signal() == kill) && self.kills.has_grown()
    }

    /// The report that it ended, and how.
    pub(super) fn report(&mut self) -> Report {
        if self.ran_out_of_memory() {
            return Report::OutOfMemory { program: self.name.clone() };
        }
        let how = self.ended().map_or_else(|| "nobody knows how".to_owned(), |status| status.to_string());
        Report::Ended { program: self.name.clone(), how }
    }

    fn is_stopped(&self) -> bool {
        let look = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        matches!(waitid(WaitId::PidFd(self.pidfd.as_fd()), look), Ok(Some(_)))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if self.status.is_none() {
            // Fails only when it has ended already.
            let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
            self.ended();
        }
    }
}

/// What ended a watch.
pub(super) enum Woken {
    /// The host closed its end.
    Host,
    /// The program at this place ended.
    Program(usize),
    /// The time-out passed.
    Time,
}

/// Waits for the host's end and the programs' ends, and for signals that stop a program.
pub(super) struct Watch<'a> {
    host: &'a UnixStream,
    children: SignalFd,
}

impl<'a> Watch<'a> {
    /// Only for a single-threaded process: from here on the signal that tells of a child is read, not delivered.
    pub(super) fn new(host: &'a UnixStream) -> Result<Self, Report> {
        let fault = |errno: nix::Error| not_started("watch for the end of programs".into(), &errno.into());
        let mut signals = SigSet::empty();
        signals.add(NixSignal::SIGCHLD);
        signals.thread_block().map_err(fault)?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self { host, children: SignalFd::with_flags(&signals, flags).map_err(fault)? })
    }

    /// Waits; where several have happened, the host comes first and then the programs in their order.
    pub(super) fn wait(&self, programs: &[&Program], timeout: Option<&Timespec>) -> Result<Woken, Report> {
        loop {
            let watched = [self.host.as_fd(), self.children.as_fd()].into_iter();
            let watched = watched.chain(programs.iter().map(|program| program.pidfd.as_fd()));
            let mut polled: Vec<PollFd<'_>> =
                watched.map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN)).collect();
            match poll(&mut polled, timeout) {
                Ok(0) => return Ok(Woken::Time),
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(fault) => return Err(not_started("watch the machine".into(), &fault.into())),
            }
            let ready = |place: usize| polled.get(place).is_some_and(|polled| !polled.revents().is_empty());
            if ready(0) && has_left(self.host) {
                return Ok(Woken::Host);
            }
            if let Some(ended) = (0..programs.len()).find(|place| ready(place + 2)) {
                return Ok(Woken::Program(ended));
            }
            // What it says is in the looks below: signals of one kind are merged.
            while matches!(self.children.read_signal(), Ok(Some(_))) {}
            if let Some(stopped) = programs.iter().find(|program| program.is_stopped()) {
                return Err(Report::Stopped { program: stopped.name.clone() });
            }
        }
    }
}

// The host sends nothing after its orders, so what it might send has no meaning.
fn has_left(mut host: &UnixStream) -> bool {
    let mut ignored = [0; 64];
    !matches!(host.read(&mut ignored), Ok(1..))
}

/// The report of a step that failed before the machine ran.
pub(super) fn not_started(step: String, cause: &io::Error) -> Report {
    Report::NotStarted { step, cause: cause.to_string() }
}
