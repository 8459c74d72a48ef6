// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Processes that the runner starts, and the wait until the first of them ends.

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
    time::Duration,
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

use super::{monitor::Monitor, oom_kills::OomKills};
use crate::machines::{
    confine::Confinement,
    line_socket,
    runner_messages::{Answer, Command as HostCommand, Report},
    sys::{self, ForkedInto},
};

/// Exit code of a child whose runner died before the child could watch the runner. No process reads this code.
const ORPHANED: i32 = 122;
/// Exit code of a child that failed to execute its program and has reported the reason.
const NOT_STARTED: i32 = 123;

/// Maximum number of heaps that glibc creates in a program.
const HEAPS_MAX: &str = "2";

/// A child process. Dropping it kills the process and waits for its exit.
pub(super) struct Program {
    name: String,
    pid: Pid,
    pidfd: OwnedFd,
    status: Option<ExitStatus>,
    kills: OomKills,
}

impl Program {
    /// Executes another program in a confined child process.
    pub(super) fn start(
        path: &Path,
        arguments: Vec<OsString>,
        stdout: Stdio,
        confinement: &Confinement,
    ) -> Result<Self, Report> {
        let fault = |source: io::Error| not_started(format!("start {}", path.display()), &source);
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
        let (mut errors, error_writer) = UnixStream::pair().map_err(fault)?;
        let mut command = Command::new(path);
        // On hosts with many processors, more heaps would exceed the limit on the address space.
        command
            .args(arguments)
            .env_clear()
            .env("MALLOC_ARENA_MAX", HEAPS_MAX)
            .stdin(Stdio::null())
            .stdout(stdout)
            .process_group(0);
        // `clone` creates a pid namespace for this child only; `unshare` would put all later children into the same
        // namespace.
        let fork = || sys::fork_to_execute(confinement.namespaces.clone_flags());
        let program = Self::forked(&name, fork, || {
            let fault = confinement.apply().map_or_else(|fault| fault, |()| command.exec());
            // The write fails if the runner has ended, and then no process needs the error.
            let _ = write!(&error_writer, "{fault}");
            NOT_STARTED
        })
        .map_err(fault)?;
        drop(error_writer);
        let mut cause = String::new();
        errors.read_to_string(&mut cause).map_err(fault)?;
        if cause.is_empty() { Ok(program) } else { Err(fault(io::Error::other(cause))) }
    }

    /// Forks a child that calls `run` and exits with the returned code. `run` must apply the confinement itself. A
    /// runner may call this function only once.
    pub(super) fn fork(name: &str, confinement: &Confinement, run: impl FnOnce() -> i32) -> Result<Self, Report> {
        let fork = || {
            unshare(confinement.namespaces.clone_flags())?;
            sys::fork_single_threaded()
        };
        Self::forked(name, fork, run).map_err(|fault| not_started(format!("start {name}"), &fault))
    }

    fn forked(
        name: &str,
        fork: impl FnOnce() -> io::Result<ForkedInto>,
        run: impl FnOnce() -> i32,
    ) -> io::Result<Self> {
        let runner = pidfd_open(getpid(), PidfdFlags::empty())?;
        let pid = match fork()? {
            ForkedInto::Child => sys::exit_now(if sys::die_with(&runner).is_ok() { run() } else { ORPHANED }),
            ForkedInto::Parent(pid) => pid,
        };
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self { name: name.to_owned(), pid, pidfd, status: None, kills: OomKills::now() })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits for the exit. Returns the exit status, or `None` if the status is unknown.
    pub(super) fn wait(&mut self) -> Option<ExitStatus> {
        while self.status.is_none() {
            match waitpid(Some(self.pid), WaitOptions::empty()) {
                Ok(Some((_, status))) => self.status = Some(ExitStatus::from_raw(status.as_raw())),
                Ok(None) | Err(Errno::INTR) => {}
                Err(_) => return None,
            }
        }
        self.status
    }

    /// Waits for the exit. Returns whether the kernel killed the process because memory ran out.
    pub(super) fn ran_out_of_memory(&mut self) -> bool {
        let kill = Some(Signal::KILL.as_raw());
        self.wait().is_some_and(|status| status.signal() == kill) && self.kills.have_grown()
    }

    /// Waits for the exit and reports it.
    pub(super) fn report(&mut self) -> Report {
        if self.ran_out_of_memory() {
            return Report::OutOfMemory { program: self.name.clone() };
        }
        let how = self.wait().map_or_else(|| "unknown exit status".to_owned(), |status| status.to_string());
        Report::Ended { program: self.name.clone(), how }
    }

    pub(super) fn exits_within(&self, within: Duration) -> bool {
        let mut ended = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let within = Timespec::try_from(within).ok();
        matches!(poll(&mut ended, within.as_ref()), Ok(1..))
    }

    fn is_stopped(&self) -> bool {
        let options = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        matches!(waitid(WaitId::PidFd(self.pidfd.as_fd()), options), Ok(Some(_)))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if self.status.is_none() {
            // Fails only if the process has ended already.
            let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
            self.wait();
        }
    }
}

/// The result of a wait.
pub(super) enum Event {
    /// The host closed its end of the socket.
    HostClosed,
    /// The program ended.
    Exited,
    /// The host sent a command, and files with it.
    Command(HostCommand, Vec<OwnedFd>),
    /// QEMU's monitor sent something.
    Monitor,
}

/// Watches the host's socket and the program. Also detects that a signal has stopped the program.
pub(super) struct Watch<'a> {
    host: &'a UnixStream,
    children: SignalFd,
}

impl<'a> Watch<'a> {
    /// Blocks SIGCHLD and opens a descriptor that receives the signal. Only for a single-threaded process.
    pub(super) fn new(host: &'a UnixStream) -> Result<Self, Report> {
        let fault = |errno: nix::Error| not_started("watch for the exit of programs".into(), &errno.into());
        let mut signals = SigSet::empty();
        signals.add(NixSignal::SIGCHLD);
        signals.thread_block().map_err(fault)?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self { host, children: SignalFd::with_flags(&signals, flags).map_err(fault)? })
    }

    /// Waits for an event. If several have happened, the host's takes precedence.
    pub(super) fn wait(&self, program: &Program, monitor: Option<&Monitor>) -> Result<Event, Report> {
        loop {
            let watched = [self.host.as_fd(), self.children.as_fd(), program.pidfd.as_fd()];
            let watched = watched.into_iter().chain(monitor.map(AsFd::as_fd));
            let mut polled: Vec<_> =
                watched.map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN)).collect();
            match poll(&mut polled, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(fault) => return Err(not_started("watch the machine".into(), &fault.into())),
            }
            let mut happened = polled.iter().map(|polled| !polled.revents().is_empty());
            let mut next = || happened.next().unwrap_or(false);
            let (host, _children, ended, monitor) = (next(), next(), next(), next());
            if host {
                // An invalid line can only come from another version of this program.
                return Ok(match line_socket::receive(self.host) {
                    Ok(Some((command, files))) => Event::Command(command, files),
                    Ok(None) | Err(_) => Event::HostClosed,
                });
            }
            if ended {
                return Ok(Event::Exited);
            }
            if monitor {
                return Ok(Event::Monitor);
            }
            // The kernel merges signals of one kind, so their content is ignored and the program is checked below.
            while matches!(self.children.read_signal(), Ok(Some(_))) {}
            if program.is_stopped() {
                return Err(Report::Stopped { program: program.name.clone() });
            }
        }
    }

    /// Answers a command of the host.
    pub(super) fn answer(&self, answer: &Answer) {
        let mut host = self.host;
        // The write fails if the host has ended, and then the next wait notices that.
        let _ = serde_json::to_string(answer).map(|line| writeln!(host, "{line}"));
    }
}

/// The report of a step that failed before the machine ran.
pub(super) fn not_started(step: String, cause: &io::Error) -> Report {
    Report::NotStarted { step, cause: cause.to_string() }
}
