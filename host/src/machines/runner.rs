// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The runner: the process that owns one machine's programs and ends them when its host ends, however that ends.
//!
//! It is this binary, executed again, with one thread: the kernel's death signal belongs to the thread that forked, and
//! the threads of an async runtime come and go. The host holds the other end of the runner's stdin; when that closes,
//! or either program ends, the runner kills what is left, waits for it, removes the run folder, reports and exits. If
//! the runner itself is killed, the kernel kills both programs, and the host (or the next server) removes the folder.
//!
//! stdout is the guest's console and stderr what the programs print; the host reads both.

mod memory;
mod program;

use std::{
    env,
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    mem,
    os::{fd::AsRawFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::Timespec,
    fs::{FlockOperation, flock},
    io::{FdFlags, fcntl_setfd},
    process::{Resource, Rlimit, setrlimit, setsid},
    thread::set_no_new_privs,
};

use self::program::{Program, Watch, Woken, not_started};
use super::{
    confine::{self, Calls, Files, Namespaces, Walls},
    file_names::KVM,
    krun, probe_guest, qemu, roles, run_dirs,
    runner_messages::{Accelerator, KrunConfig, LINE_BYTES_MAX, MachineConfig, Maker, Orders, QemuConfig, Report},
    sys,
};

/// Time for the removal of the run folder; the host gives a runner 3 s to end.
const REMOVAL_MAX: Duration = Duration::from_secs(2);
/// From the start of `vhost-device-vsock` to its listening; it takes a few milliseconds, so more is a hang.
const VHOST_START_MAX: Duration = Duration::from_secs(5);
/// Between two looks whether it listens.
const VHOST_LOOK_INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };

/// Runs the runner if this process was started as one. `main` calls it before it starts any thread.
pub fn run_if_runner() -> Option<ExitCode> {
    let mut arguments = env::args_os().skip(1);
    if arguments.next()? != roles::SUBCOMMAND {
        return None;
    }
    Some(match arguments.next() {
        Some(role) if role == roles::MACHINE => run(),
        Some(role) if role == roles::PROBE => probe_guest::run(),
        Some(role) if role == roles::CONFINEMENT => exit_code(confine::check()),
        Some(role) if role == roles::FIRMWARE => exit_code(krun::load_firmware(Path::new(&arguments.next()?))),
        _ => ExitCode::FAILURE,
    })
}

/// Prints why a check failed, for [`roles::check`].
fn exit_code(checked: io::Result<()>) -> ExitCode {
    match checked {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            let _ = writeln!(io::stdout(), "{fault}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> ExitCode {
    let Ok(mut host) = rustix::stdio::stdin().try_clone_to_owned().map(UnixStream::from) else {
        return ExitCode::FAILURE;
    };
    let Some(orders) = read_orders(&host) else { return ExitCode::FAILURE };
    let end = run_machine(&orders, &host);
    // Both programs are dead here. The host removes what this leaves.
    let _ = run_dirs::remove(&orders.run_dir, REMOVAL_MAX);
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
    if orders.namespaces == Namespaces::Own {
        confine::enter_user_namespace().map_err(|fault| {
            not_started("enter a user namespace, as was possible when the server started".into(), &fault)
        })?;
    }
    let runner = Runner { run_dir: &orders.run_dir, namespaces: orders.namespaces, watch: Watch::new(host)? };
    match &orders.maker {
        Maker::Qemu(config) => runner.run_qemu(&orders.machine, config),
        Maker::Krun(config) => runner.run_krun(&orders.machine, config),
    }
}

/// What every machine needs.
struct Runner<'a> {
    run_dir: &'a Path,
    namespaces: Namespaces,
    watch: Watch<'a>,
}

impl Runner<'_> {
    fn run_qemu(&self, machine: &MachineConfig, config: &QemuConfig) -> Result<(), Report> {
        let (program, arguments) = (&config.vhost_device_vsock, qemu::vhost_device_vsock());
        let walls = self.walls(Calls::Program, self.files(vec![]).with_program(program));
        let mut vhost = Program::start(program, arguments, io::stderr().into(), &walls)?;
        let Some(connection) = connect(&self.watch, &mut vhost)? else { return Ok(()) };
        let arguments = qemu::qemu(machine, config, connection.as_raw_fd());
        let mut files = self.files(vec![machine.image.clone(), config.kernel.clone()]).with_program(&config.qemu);
        if config.accelerator == Accelerator::Kvm {
            files.devices.push(KVM);
        }
        let walls = self.walls(Calls::Program, files);
        let mut qemu = Program::start(&config.qemu, arguments, Stdio::inherit(), &walls)?;
        drop(connection);
        // QEMU's end takes the other's connection away and may end it too, so QEMU is looked at first.
        match self.watch.wait(&[&qemu, &vhost], None)? {
            Woken::Program(0) => Err(qemu.report()),
            Woken::Program(_) => Err(vhost.report()),
            Woken::Host | Woken::Time => Ok(()),
        }
    }

    fn run_krun(&self, machine: &MachineConfig, config: &KrunConfig) -> Result<(), Report> {
        let pair = UnixStream::pair();
        let (told, telling) = pair.map_err(|fault| not_started("make a pair of sockets".into(), &fault))?;
        let mut files = self.files(vec![machine.image.clone()]);
        files.devices.push(KVM);
        let walls = self.walls(Calls::Krun, files);
        let mut vm = Program::fork("libkrun", &walls, || krun::run(machine, config, &walls, telling))?;
        match self.watch.wait(&[&vm], None)? {
            Woken::Program(_) if vm.ran_out_of_memory() => Err(vm.report()),
            Woken::Program(_) => Err(krun::reported(&told).unwrap_or_else(|| krun::ending(vm.ended(), vm.name()))),
            Woken::Host | Woken::Time => Ok(()),
        }
    }

    fn files(&self, read_only: Vec<PathBuf>) -> Files {
        Files { folder: self.run_dir.to_owned(), read_only, devices: vec!["/dev/null", "/dev/urandom"] }
    }

    fn walls(&self, calls: Calls, files: Files) -> Walls {
        Walls { namespaces: self.namespaces, files, calls }
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
fn connect(watch: &Watch<'_>, vhost: &mut Program) -> Result<Option<UnixStream>, Report> {
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
            return Err(not_started(format!("connect to {}", vhost.name()), &fault));
        }
        match watch.wait(&[&*vhost], Some(&VHOST_LOOK_INTERVAL))? {
            Woken::Host => return Ok(None),
            Woken::Program(_) => return Err(vhost.report()),
            Woken::Time => {}
        }
    }
}

fn is_too_early(fault: &io::Error) -> bool {
    matches!(fault.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}
