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

mod devices_folder;
mod guest_memory;
mod monitor;
mod oom_kills;
mod program;

use std::{
    env,
    fs::File,
    io::{self, Read as _, Seek as _, Write},
    mem,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock},
    process::{Resource, Rlimit, setrlimit, setsid},
    thread::set_no_new_privs,
};
use waggle_protocol::{CALL_PORT, EGRESS_PORT};

use self::{
    devices_folder::DevicesFolder,
    guest_memory::GuestMemory,
    monitor::Monitor,
    program::{Event, Program, Watch, not_started},
};
use super::{
    confine::{self, Calls, Confinement, Limits, Namespaces, RootFiles},
    disks,
    file_names::{KVM, LINK_SOCKETS},
    kernel, krun, line_socket, probe_guest,
    qemu::{self, Inherited},
    roles, run_dirs,
    runner_messages::{
        Accelerator, Answer, Command, DEVICES_BYTES_MAX, KrunConfig, MachineConfig, Maker, Orders, QemuConfig,
        QemuStart, Report, SnapshotParts,
    },
    sys,
};

/// Timeout for the removal of the run folder. The host kills a runner that has not exited after 3 s.
const REMOVAL_MAX: Duration = Duration::from_secs(2);

/// Maximum time between the moment at which a program that ends closes its files, and its exit.
const EXIT_MAX: Duration = Duration::from_secs(2);

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
    let Ok(Some((orders, files))) = line_socket::receive::<Orders>(&host) else { return ExitCode::FAILURE };
    let end = run_machine(&orders, files, &host);
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

// Returns `Ok` when the host closes its end of the socket or ends.
fn run_machine(orders: &Orders, files: Vec<OwnedFd>, host: &UnixStream) -> Result<(), Report> {
    enter(&orders.run_dir).map_err(|fault| not_started(format!("enter {}", orders.run_dir.display()), &fault))?;
    if orders.namespaces == Namespaces::Own {
        confine::enter_user_namespace().map_err(|fault| {
            not_started("enter a user namespace, which worked when the server started".into(), &fault)
        })?;
    }
    // Only now, because the kernel lets only dumpable processes write their maps of users.
    confine::hide_memory().map_err(|fault| not_started("hide the runner's memory".into(), &fault))?;
    let devices = match orders.namespaces {
        Namespaces::Own => DevicesFolder::mount(),
        Namespaces::Shared => DevicesFolder::open(Path::new(".")),
    };
    let devices = devices.map_err(|fault| not_started("create a folder in memory".into(), &fault))?;
    let runner = Runner { run_dir: &orders.run_dir, namespaces: orders.namespaces, watch: Watch::new(host)?, devices };
    match &orders.maker {
        Maker::Qemu(config) => runner.run_qemu(&orders.machine, config, files),
        Maker::Krun(config) => runner.run_krun(&orders.machine, config),
    }
}

struct Runner<'a> {
    run_dir: &'a Path,
    namespaces: Namespaces,
    watch: Watch<'a>,
    devices: DevicesFolder,
}

impl Runner<'_> {
    fn run_qemu(&self, machine: &MachineConfig, config: &QemuConfig, files: Vec<OwnedFd>) -> Result<(), Report> {
        let (mut monitor, monitor_end) =
            Monitor::connect().map_err(|fault| not_started("connect QEMU's monitor".into(), &fault))?;
        let inherited = inherited(config, files, monitor_end)?;
        let is_sealed = matches!(config.start, QemuStart::Snapshot { is_shared: true });
        let own_memory = inherited.memory.try_clone();
        let own_memory = own_memory.map_err(|fault| not_started("keep the file of the memory".into(), &fault))?;
        let memory = GuestMemory::new(own_memory, is_sealed);
        let arguments = qemu::qemu(machine, config, &inherited);
        let (mut read_only, mut calls) = (vec![machine.image.clone()], Calls::Program);
        match &config.start {
            QemuStart::Boot { kernel, .. } => read_only.push(kernel.clone()),
            QemuStart::Snapshot { is_shared: true } => calls = Calls::ProgramWithSharedMemory,
            QemuStart::Snapshot { is_shared: false } => {}
        }
        let mut files = self.files(machine, read_only).with_program(&config.qemu).with_own_descriptors();
        if config.accelerator == Accelerator::Kvm {
            files.devices.push(KVM);
        }
        let confinement = self.confinement(machine, calls, files)?;
        let mut qemu = Program::start(&config.qemu, arguments, Stdio::inherit(), &confinement)?;
        drop(inherited);
        loop {
            match self.watch.wait(&qemu, Some(&monitor))? {
                Event::Exited => return Err(qemu.report()),
                Event::HostClosed => return Ok(()),
                Event::Command(command, files) => {
                    let answer = match command {
                        Command::Continue => monitor.resume().map(|()| Duration::ZERO).map_err(Failure::StandsStill),
                        Command::Snapshot(parts) => {
                            snapshot(parts, files, &self.devices, &mut monitor, &memory, &qemu, &machine.scratch)
                        }
                    };
                    let done = |stood_still: Duration| Answer::Done {
                        stood_still_us: u64::try_from(stood_still.as_micros()).unwrap_or(u64::MAX),
                    };
                    let answer = match answer {
                        Ok(stood_still) => done(stood_still),
                        Err(Failure::Continues(fault)) => Answer::Failed(fault.to_string()),
                        Err(Failure::StandsStill(fault)) => Answer::StandsStill(fault.to_string()),
                    };
                    self.watch.answer(&answer);
                }
                Event::Monitor => {
                    if let Err(fault) = monitor.discard_events() {
                        // A program closes its files before it has exited.
                        let has_exited = qemu.exits_within(EXIT_MAX);
                        let lost = || not_started("reach QEMU's monitor".into(), &fault);
                        return Err(if has_exited { qemu.report() } else { lost() });
                    }
                }
            }
        }
    }

    fn run_krun(&self, machine: &MachineConfig, config: &KrunConfig) -> Result<(), Report> {
        let pair = UnixStream::pair();
        let (reports, report_writer) = pair.map_err(|fault| not_started("create a socket pair".into(), &fault))?;
        let mut files = self.files(machine, vec![machine.image.clone()]);
        files.devices.push(KVM);
        let confinement = self.confinement(machine, Calls::Krun, files)?;
        let mut vm = Program::fork(config.library.name(), &confinement, || {
            krun::run(machine, config, &confinement, report_writer)
        })?;
        match self.watch.wait(&vm, None)? {
            Event::Exited if vm.ran_out_of_memory() => Err(vm.report()),
            Event::Exited => {
                Err(krun::read_report(&reports).unwrap_or_else(|| krun::exit_report(vm.wait(), vm.name())))
            }
            Event::HostClosed | Event::Command(..) | Event::Monitor => Ok(()),
        }
    }

    fn files(&self, machine: &MachineConfig, read_only: Vec<PathBuf>) -> RootFiles {
        RootFiles {
            folder: self.run_dir.to_owned(),
            writable: vec![machine.scratch.clone()],
            read_only,
            devices: vec!["/dev/null", "/dev/urandom"],
            own_descriptors: false,
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

/// A command failed.
enum Failure {
    Continues(io::Error),
    /// The guest should continue, but cannot.
    StandsStill(io::Error),
}

impl From<io::Error> for Failure {
    fn from(fault: io::Error) -> Self {
        Self::Continues(fault)
    }
}

/// Takes a snapshot, and returns for how long the guest stood still. The guest continues if that fails.
fn snapshot(
    parts: SnapshotParts,
    files: Vec<OwnedFd>,
    folder: &DevicesFolder,
    monitor: &mut Monitor,
    memory: &GuestMemory,
    qemu: &Program,
    scratch: &Path,
) -> Result<Duration, Failure> {
    let mut files = files.into_iter().map(File::from);
    let mut next = || files.next().ok_or(io::Error::from(io::ErrorKind::NotFound));
    let mut devices = next()?;
    let memory_copy = parts.memory.then(&mut next).transpose()?;
    let disk_copy = parts.disk.then(&mut next).transpose()?;
    if let Some(copy) = &memory_copy {
        memory.copy_file(copy).map_err(step("copy the memory"))?;
    }
    let mut copy_rest = |monitor: &mut Monitor| -> io::Result<()> {
        monitor.stop()?;
        if let Some(copy) = &memory_copy {
            memory.copy_changes(copy, qemu.pid()).map_err(step("copy changes of the memory"))?;
        }
        if let Some(copy) = &disk_copy {
            disks::copy_data(&File::open(scratch)?, copy).map_err(step("copy the disk"))?;
        }
        let mut written = folder.file().map_err(step("create a file for the devices"))?;
        monitor.save_devices(&written)?;
        written.rewind()?;
        io::copy(&mut written.take(DEVICES_BYTES_MAX), &mut devices).map(|_bytes| ())
    };
    let begun = Instant::now();
    let copied = copy_rest(monitor);
    if copied.is_err() || parts.continues {
        monitor.resume().map_err(Failure::StandsStill)?;
    }
    copied?;
    Ok(begun.elapsed())
}

fn step(step: &'static str) -> impl Fn(io::Error) -> io::Error {
    move |fault| io::Error::new(fault.kind(), format!("failed to {step}: {fault}"))
}

/// Opens what QEMU inherits.
fn inherited(config: &QemuConfig, files: Vec<OwnedFd>, monitor: UnixStream) -> Result<Inherited, Report> {
    let mut files = files.into_iter();
    let missing = || not_started("find the files of the memory".into(), &io::ErrorKind::NotFound.into());
    let memory = files.next().ok_or_else(missing)?;
    let devices = match config.start {
        QemuStart::Boot { .. } => None,
        QemuStart::Snapshot { .. } => Some(read_anew(&files.next().ok_or_else(missing)?)?),
    };
    let inherited = Inherited {
        memory,
        devices,
        monitor,
        calls: connect(CALL_PORT)?,
        egress: config.has_network.then(|| connect(EGRESS_PORT)).transpose()?,
    };
    inherited.keep_open().map_err(|fault| not_started("pass files to QEMU".into(), &fault))?;
    Ok(inherited)
}

/// Opens a file again, only for reading, and with a position of its own: other machines read the same file.
fn read_anew(file: &OwnedFd) -> Result<OwnedFd, Report> {
    let opened = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()));
    Ok(opened.map_err(|fault| not_started("open the state of the devices".into(), &fault))?.into())
}

// Connects on behalf of QEMU, which then needs no access to the sockets.
fn connect(port: u32) -> Result<UnixStream, Report> {
    let socket = format!("{LINK_SOCKETS}_{port}");
    UnixStream::connect(&socket).map_err(|fault| not_started(format!("connect to {socket}"), &fault))
}
