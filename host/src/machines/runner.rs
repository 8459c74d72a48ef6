// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The runner: the process that starts the VMM of one machine. It kills the VMM when the host process ends for any
//! reason.
//!
//! The runner is this binary, executed again. It has a single thread, because the kernel's parent death signal is bound
//! to the thread that forked, and an async runtime starts and ends threads. The runner's stdin is a socket to the host.
//! When the host closes the socket, or the VMM ends, the runner kills the VMM if it still runs, waits for its exit,
//! removes the run folder, reports the reason and exits. If the runner itself is killed, the kernel kills the VMM, and
//! the host or the next server removes the folder.
//!
//! The runner's stdout carries the guest's console, and its stderr the output of the VMM. The host reads both.

mod oom_kills;
mod program;

use std::{
    env,
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    mem,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::Duration,
};

use rustix::{
    fs::{FlockOperation, flock},
    io::{FdFlags, fcntl_setfd},
    process::{Resource, Rlimit, setrlimit, setsid},
    thread::set_no_new_privs,
};
use waggle_protocol::{CALL_PORT, EGRESS_PORT};

use self::program::{Event, Program, Watch, not_started};
use super::{
    confine::{self, Calls, Confinement, Limits, Namespaces, RootFiles},
    file_names::{KVM, LINK_SOCKETS},
    kernel, krun, probe_guest,
    qemu::{self, LinkConnections},
    roles, run_dirs,
    runner_messages::{Accelerator, KrunConfig, LINE_BYTES_MAX, MachineConfig, Maker, Orders, QemuConfig, Report},
    sys,
};

/// Timeout for the removal of the run folder. The host kills a runner that has not exited after 3 s.
const REMOVAL_MAX: Duration = Duration::from_secs(2);

/// Runs the runner if this process was started as a runner. `main` must call this function before it starts any thread.
pub fn run_if_runner() -> Option<ExitCode> {
    let mut arguments = env::args_os().skip(1);
    if arguments.next()? != roles::SUBCOMMAND {
        return None;
    }
    Some(match arguments.next() {
        Some(role) if role == roles::MACHINE => run(),
        Some(role) if role == roles::PROBE => probe_guest::run(),
        Some(role) if role == roles::CONFINEMENT => exit_code(confine::check()),
        Some(role) if role == roles::FIRMWARE => {
            exit_code(krun::load_firmware(Path::new(&arguments.next()?)).map(|_kernel| ()))
        }
        Some(role) if role == roles::KERNEL => match kernel::write_from(Path::new(&arguments.next()?)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(fault) => {
                let _ = writeln!(io::stderr(), "{fault}");
                ExitCode::FAILURE
            }
        },
        _ => ExitCode::FAILURE,
    })
}

/// Returns the exit code of a check. Prints the reason of a failure, which [`roles::check`] reads.
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
    // All programs have ended here. If this removal fails, the host removes the folder.
    let _ = run_dirs::remove(&orders.run_dir, REMOVAL_MAX);
    match end {
        Ok(()) => ExitCode::SUCCESS,
        Err(report) => {
            // The write fails if the host has ended, and then no process needs the report.
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

// Returns `Ok` when the host closes its end of the socket or ends.
fn run_machine(orders: &Orders, host: &UnixStream) -> Result<(), Report> {
    enter(&orders.run_dir).map_err(|fault| not_started(format!("enter {}", orders.run_dir.display()), &fault))?;
    if orders.namespaces == Namespaces::Own {
        confine::enter_user_namespace().map_err(|fault| {
            not_started("enter a user namespace, which worked when the server started".into(), &fault)
        })?;
    }
    // Only now, because the kernel lets only dumpable processes write their maps of users.
    confine::hide_memory().map_err(|fault| not_started("hide the runner's memory".into(), &fault))?;
    let runner = Runner { run_dir: &orders.run_dir, namespaces: orders.namespaces, watch: Watch::new(host)? };
    match &orders.maker {
        Maker::Qemu(config) => runner.run_qemu(&orders.machine, config),
        Maker::Krun(config) => runner.run_krun(&orders.machine, config),
    }
}

struct Runner<'a> {
    run_dir: &'a Path,
    namespaces: Namespaces,
    watch: Watch<'a>,
}

impl Runner<'_> {
    fn run_qemu(&self, machine: &MachineConfig, config: &QemuConfig) -> Result<(), Report> {
        let links = LinkConnections {
            calls: connect(CALL_PORT)?,
            egress: config.has_network.then(|| connect(EGRESS_PORT)).transpose()?,
        };
        let arguments = qemu::qemu(machine, config, &links);
        let read_only = vec![machine.image.clone(), config.kernel.clone()];
        let mut files = self.files(machine, read_only).with_program(&config.qemu);
        if config.accelerator == Accelerator::Kvm {
            files.devices.push(KVM);
        }
        let confinement = self.confinement(machine, Calls::Program, files)?;
        let mut qemu = Program::start(&config.qemu, arguments, Stdio::inherit(), &confinement)?;
        drop(links);
        match self.watch.wait(&qemu)? {
            Event::Exited => Err(qemu.report()),
            Event::HostClosed => Ok(()),
        }
    }

    fn run_krun(&self, machine: &MachineConfig, config: &KrunConfig) -> Result<(), Report> {
        let pair = UnixStream::pair();
        let (reports, report_writer) = pair.map_err(|fault| not_started("create a socket pair".into(), &fault))?;
        let mut files = self.files(machine, vec![machine.image.clone()]);
        files.devices.push(KVM);
        let confinement = self.confinement(machine, Calls::Krun, files)?;
        let mut vm =
            Program::fork("libkrun", &confinement, || krun::run(machine, config, &confinement, report_writer))?;
        match self.watch.wait(&vm)? {
            Event::Exited if vm.ran_out_of_memory() => Err(vm.report()),
            Event::Exited => {
                Err(krun::read_report(&reports).unwrap_or_else(|| krun::exit_report(vm.wait(), vm.name())))
            }
            Event::HostClosed => Ok(()),
        }
    }

    fn files(&self, machine: &MachineConfig, read_only: Vec<PathBuf>) -> RootFiles {
        RootFiles {
            folder: self.run_dir.to_owned(),
            writable: vec![machine.scratch.clone()],
            read_only,
            devices: vec!["/dev/null", "/dev/urandom"],
        }
    }

    fn confinement(&self, machine: &MachineConfig, calls: Calls, files: RootFiles) -> Result<Confinement, Report> {
        let scratch = machine.scratch.metadata();
        let scratch = scratch.map_err(|fault| not_started("look at the scratch disk".into(), &fault))?;
        let limits = Limits { memory_mib: machine.memory_mib, disk_bytes: scratch.len() };
        Ok(Confinement { namespaces: self.namespaces, files, calls, limits })
    }
}

fn enter(run_dir: &Path) -> io::Result<()> {
    sys::keep_descriptors_from_children()?;
    set_no_new_privs(true)?;
    // Where /proc is read-only, machines run without this preference.
    let _ = confine::prefer_to_kill();
    // A core dump would write the guest's memory to the host's disk.
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    // A new session receives no signals from the terminal: the host decides when machines end. `setsid` fails only if
    // the runner already leads a process group.
    let _ = setsid();
    env::set_current_dir(run_dir)?;
    // For the next server, a free lock means that this runner has ended. So this process never releases the lock.
    let folder = File::open(".")?;
    flock(&folder, FlockOperation::NonBlockingLockExclusive)?;
    mem::forget(folder);
    Ok(())
}

// Connects on behalf of QEMU, which then needs no access to the sockets.
fn connect(port: u32) -> Result<UnixStream, Report> {
    let socket = format!("{LINK_SOCKETS}_{port}");
    let connect = || -> io::Result<UnixStream> {
        let connection = UnixStream::connect(&socket)?;
        fcntl_setfd(&connection, FdFlags::empty())?;
        Ok(connection)
    };
    connect().map_err(|fault| not_started(format!("connect to {socket}"), &fault))
}
