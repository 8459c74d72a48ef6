// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The runner: the process that owns one machine's programs and ends them when its host ends, however that ends.
//!
//! It is this binary, executed again, with one thread: the kernel's death signal belongs to the thread that forked, and
//! the threads of an async runtime come and go. The host holds the other end of the runner's stdin; when that closes, or
//! either program ends, the runner kills what is left, waits for it, removes the run folder, reports and exits. If the
//! runner itself is killed, the kernel kills both programs, and the host (or the next server) removes the folder.
//!
//! stdout is the guest's console and stderr what the programs print; the host reads both.

use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Write},
    mem,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{FlockOperation, flock},
    io::{Errno, FdFlags, fcntl_setfd},
    process::{Pid, PidfdFlags, Resource, Rlimit, pidfd_open, setrlimit, setsid},
    thread::set_no_new_privs,
};

use super::{
    probe_guest, qemu,
    runner_messages::{LINE_BYTES_MAX, Orders, Report},
    sys,
};

/// The subcommand that makes this binary a runner.
pub(super) const SUBCOMMAND: &str = "runner";
/// Runs a QEMU machine.
pub(super) const QEMU: &str = "qemu";
/// Tells whether KVM runs guests.
pub(super) const PROBE: &str = "probe";

/// From the start of `vhost-device-vsock` to its listening; it takes a few milliseconds, so more is a hang.
const VHOST_START_MAX: Duration = Duration::from_secs(5);
/// Between two looks whether it listens.
const VHOST_LOOK_INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };

/// Runs the runner if this process was started as one. `main` calls it before it starts any thread.
pub fn run_if_runner() -> Option<ExitCode> {
    let mut arguments = env::args_os().skip(1);
    if arguments.next()? != SUBCOMMAND {
        return None;
    }
    Some(match arguments.next() {
        Some(role) if role == QEMU => run(),
        Some(role) if role == PROBE => probe_guest::run(),
        _ => ExitCode::FAILURE,
    })
}

fn run() -> ExitCode {
    let Ok(mut host) = rustix::stdio::stdin().try_clone_to_owned().map(UnixStream::from) else {
        return ExitCode::FAILURE;
    };
    let Some(orders) = read_orders(&host) else { return ExitCode::FAILURE };
    let end = run_machine(&orders, &host);
    // Both programs are dead here. What cannot be removed now, the host tries again.
    let _ = fs::remove_dir_all(&orders.run_dir);
    match end {
        Ok(()) => ExitCode::SUCCESS,
        Err(report) => {
            // The host may be gone; then nobody wants to know.
            let _ = serde_json::to_string(&report).map(|line| writeln!(host, "{line}"));
            ExitCode::FAILURE
        }
    }
}

fn read_orders(host: &UnixStream) -> Option<Orders> {
    let mut line = String::new();
    BufReader::new(host.take(LINE_BYTES_MAX)).read_line(&mut line).ok()?;
    serde_json::from_str(&line).ok()
}

// Ends well when the host closes its end, or is gone.
fn run_machine(orders: &Orders, host: &UnixStream) -> Result<(), Report> {
    enter(&orders.run_dir).map_err(|fault| not_started(format!("enter {}", orders.run_dir.display()), &fault))?;
    let mut vhost = Program::start(&orders.vhost_device_vsock, qemu::vhost_device_vsock(), io::stderr().into())?;
    let Some(connection) = connect(host, &mut vhost)? else { return Ok(()) };
    let arguments = qemu::qemu(&orders.machine, connection.as_raw_fd());
    let mut qemu = Program::start(&orders.qemu, arguments, Stdio::inherit())?;
    drop(connection);
    match watch(host, &vhost, Some(&qemu), None)? {
        Woken::Qemu => Err(qemu.report()),
        Woken::Vhost => Err(vhost.report()),
        Woken::Host | Woken::Time => Ok(()),
    }
}

fn enter(run_dir: &Path) -> io::Result<()> {
    sys::keep_descriptors_from_children()?;
    set_no_new_privs(true)?;
    // A guest that crashes QEMU would have its memory written to the host's disk.
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    // A terminal's signals are for the host, which decides what ends; a leader of a session already is out of reach.
    let _ = setsid();
    env::set_current_dir(run_dir)?;
    // The next server's sweep takes a free lock for the end of this runner, so the lock lives as long as the process.
    let folder = File::open(".")?;
    flock(&folder, FlockOperation::NonBlockingLockExclusive)?;
    mem::forget(folder);
    Ok(())
}

// Connecting on QEMU's behalf takes away the question whether its peer listens already. Nothing if the host left.
fn connect(host: &UnixStream, vhost: &mut Program) -> Result<Option<UnixStream>, Report> {
    let deadline = Instant::now() + VHOST_START_MAX;
    loop {
        let fault = match UnixStream::connect(qemu::VHOST_SOCKET) {
            Ok(connection) => {
                // QEMU inherits it.
                fcntl_setfd(&connection, FdFlags::empty())
                    .map_err(|fault| not_started("hand a socket to QEMU".into(), &fault.into()))?;
                return Ok(Some(connection));
            }
            Err(fault) => fault,
        };
        if !is_too_early(&fault) || Instant::now() > deadline {
            return Err(not_started(format!("connect to {}", vhost.name), &fault));
        }
        match watch(host, vhost, None, Some(&VHOST_LOOK_INTERVAL))? {
            Woken::Host => return Ok(None),
            Woken::Vhost => return Err(vhost.report()),
            Woken::Time | Woken::Qemu => {}
        }
    }
}

fn is_too_early(fault: &io::Error) -> bool {
    matches!(fault.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// What ended a watch.
enum Woken {
    /// The host closed its end.
    Host,
    /// QEMU ended.
    Qemu,
    /// `vhost-device-vsock` ended.
    Vhost,
    /// The time-out passed.
    Time,
}

fn watch(
    host: &UnixStream,
    vhost: &Program,
    qemu: Option<&Program>,
    timeout: Option<&Timespec>,
) -> Result<Woken, Report> {
    loop {
        // Where there is no QEMU yet, the other takes its place, so that the order stays fixed.
        let watched = [host.as_fd(), vhost.pidfd.as_fd(), qemu.unwrap_or(vhost).pidfd.as_fd()];
        let mut polled = watched.each_ref().map(|descriptor| PollFd::from_borrowed_fd(*descriptor, PollFlags::IN));
        match poll(&mut polled, timeout) {
            Ok(0) => return Ok(Woken::Time),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(fault) => return Err(not_started("watch the machine".into(), &fault.into())),
        }
        let [host_ready, vhost_ready, qemu_ready] = polled.map(|polled| !polled.revents().is_empty());
        if host_ready && has_left(host) {
            return Ok(Woken::Host);
        }
        // QEMU's end takes the other's connection away and may end it too, so QEMU is looked at first.
        if qemu_ready && qemu.is_some() {
            return Ok(Woken::Qemu);
        }
        if vhost_ready {
            return Ok(Woken::Vhost);
        }
    }
}

// The host sends nothing after its orders, so what it might send has no meaning.
fn has_left(mut host: &UnixStream) -> bool {
    let mut ignored = [0; 64];
    !matches!(host.read(&mut ignored), Ok(1..))
}

fn not_started(step: String, cause: &io::Error) -> Report {
    Report::NotStarted { step, cause: cause.to_string() }
}

/// A started program; dropping it kills it and waits for its end.
struct Program {
    name: String,
    child: Child,
    pidfd: OwnedFd,
}

impl Program {
    fn start(path: &Path, arguments: Vec<OsString>, stdout: Stdio) -> Result<Self, Report> {
        let fault = |source: io::Error| not_started(format!("start {}", path.display()), &source);
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let mut command = Command::new(path);
        command.args(arguments).env_clear().stdin(Stdio::null()).stdout(stdout).process_group(0);
        sys::dies_with_its_parent(&mut command);
        let child = command.spawn().map_err(fault)?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pidfd = pid.map_or(Err(Errno::SRCH), |pid| pidfd_open(pid, PidfdFlags::empty()));
        Ok(Self { name, child, pidfd: pidfd.map_err(|errno| fault(errno.into()))? })
    }

    fn report(&mut self) -> Report {
        let how = match self.child.wait() {
            Ok(status) => status.to_string(),
            Err(fault) => fault.to_string(),
        };
        Report::Ended { program: self.name.clone(), how }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Either fails only when the program has ended and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
