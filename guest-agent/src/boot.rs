// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! From the kernel's first process to a serving agent.
//!
//! ```text
//!   kernel ─▶ PID 1, in the initial root
//!              modules, image (EROFS, read-only) + scratch (ext4) = overlay, which becomes /
//!              fork ─▶ child: the image's agent if it fits, else this one; dials the host and serves
//!              reap until the child is gone, then end the machine
//! ```
//!
//! PID 1 stays single-threaded. A boot that fails says why on the console and ends the machine.

mod certificates;
mod disks;
mod hosts;
pub(crate) mod places;
mod resolver;
mod users;

use std::{
    convert::Infallible,
    ffi::CString,
    fs, io,
    os::fd::{AsFd, OwnedFd},
    process::ExitCode,
};

use nix::{
    fcntl::OFlag,
    sys::{
        memfd::{MFdFlags, memfd_create},
        sysinfo::sysinfo,
    },
    unistd::{ForkResult, dup2_stdin, dup2_stdout, execv, pipe2, write},
};
use waggle_protocol::{
    Origin,
    boot::{BOOT_CONFIG_BYTES_MAX, BOOT_CONFIG_PATH, BootConfig},
};

use crate::{
    cgroups,
    confine::Defences,
    console::{report, with_cause},
    dial,
    egress::Egress,
    guest::{Guest, Work},
    reaper::{self, Serving},
    room::Door,
    sys,
};

/// The subcommand by which PID 1 starts the agent that an image brings.
pub const SERVE: &str = "serve";

/// Descriptors that the processes of one user may wait for: as good as no limit, memory is.
const EPOLL_WATCHES_MAX: &str = "100000000";

/// What failed on the way up.
#[derive(Debug, thiserror::Error)]
#[error("failed to {step}")]
pub(crate) struct BootFault {
    /// What was being done, with its operands.
    step: String,
    source: io::Error,
}

/// Adds to an I/O error what was being done.
pub(crate) trait Step<T> {
    /// Names the step; it reads after "failed to".
    fn step(self, step: impl FnOnce() -> String) -> Result<T, BootFault>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, BootFault> {
        self.map_err(|source| BootFault { step: step(), source: source.into() })
    }
}

/// PID 1's whole life. It returns only if the machine could not be ended.
#[must_use]
pub fn run() -> ExitCode {
    match prepare() {
        Ok((config, mut egress)) => match start(&config, config.image_agent.as_deref(), &mut egress) {
            Ok(first) => {
                let second = |egress: &mut Option<Egress>| start(&config, None, egress);
                reaper::reap_until_gone(first, config.image_agent.is_some().then_some(second), &mut egress);
            }
            Err(errno) => report(&format!("failed to start the serving child: {errno}")),
        },
        Err(fault) => report(&with_cause(&fault)),
    }
    reaper::end_machine();
    ExitCode::FAILURE
}

/// Makes the machine's file system and everything in it that does not serve calls.
fn prepare() -> Result<(BootConfig, Option<Egress>), BootFault> {
    places::mount_initial()?;
    let bytes = fs::read(BOOT_CONFIG_PATH).step(|| format!("read {BOOT_CONFIG_PATH}"))?;
    let mut config = decode(&bytes).step(|| format!("understand {BOOT_CONFIG_PATH}"))?;
    disks::load_modules(&config.modules)?;
    disks::mount_root()?;
    places::switch_root()?;
    places::mount_in_root()?;
    users::add_sandbox_user()?;
    protect_agent().step(|| "set the control groups up".to_owned())?;
    hosts::name_machine(&config.hostname)?;
    sys::set_loopback_up().step(|| "set the loopback device up".to_owned())?;
    // What the image says about certificates itself comes later in the list, and counts.
    config.env.splice(0..0, certificates::trust(&std::mem::take(&mut config.ca_bundle))?);
    let mut egress = config.network.map(Egress::open).transpose()?;
    if let Some(egress) = &mut egress {
        resolver::name_server()?;
        egress.start();
    }
    Ok((config, egress))
}

/// The agent survives what user work does to the memory: this process's settings are inherited by the serving child.
fn protect_agent() -> io::Result<()> {
    fs::write("/proc/self/oom_score_adj", "-1000")?;
    // The limit is one for all of root's processes; the agent's waits must not fail because a call's used it up.
    fs::write("/proc/sys/fs/epoll/max_user_watches", EPOLL_WATCHES_MAX)?;
    cgroups::set_up(sysinfo()?.ram_total())
}

fn decode(bytes: &[u8]) -> io::Result<BootConfig> {
    if bytes.len() > BOOT_CONFIG_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is too long"));
    }
    BootConfig::decode(bytes).map_err(io::Error::other)
}

/// Forks the serving child: the agent at `image_agent`, or this one. It has no part in the network.
fn start(config: &BootConfig, image_agent: Option<&str>, egress: &mut Option<Egress>) -> nix::Result<Serving> {
    let (ready, accepted) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    match sys::fork_single_threaded()? {
        ForkResult::Parent { child } => Ok(Serving { pid: child, ready }),
        ForkResult::Child => {
            drop((ready, egress.take()));
            let status = match image_agent {
                Some(path) => exec_image_agent(config, path, &accepted).map_or_else(
                    |source| {
                        report(&format!("failed to start the image's agent {path}: {source}"));
                        1
                    },
                    |never| match never {},
                ),
                None => serve(config, Origin::Host, &accepted),
            };
            #[expect(clippy::exit, reason = "the child must not return into PID 1's code")]
            std::process::exit(status)
        }
    }
}

fn exec_image_agent(config: &BootConfig, path: &str, accepted: &OwnedFd) -> io::Result<Infallible> {
    let bytes = config.encode().map_err(io::Error::other)?;
    let file = memfd_create(c"waggle-boot", MFdFlags::MFD_CLOEXEC)?;
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        let written = write(&file, rest)?;
        rest = rest.get(written..).unwrap_or_default();
    }
    nix::unistd::lseek(file.as_fd(), 0, nix::unistd::Whence::SeekSet)?;
    dup2_stdin(&file)?;
    dup2_stdout(accepted)?;
    let path = CString::new(path).map_err(io::Error::other)?;
    let arguments = [path.as_c_str(), c"serve"];
    Ok(execv(&path, &arguments)?)
}

/// The life of an agent that came with the image: the boot configuration is on stdin, stdout is the pipe to PID 1.
#[must_use]
pub fn serve_from_image() -> ExitCode {
    let served = || -> io::Result<u8> {
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(io::stdin(), BOOT_CONFIG_BYTES_MAX as u64), &mut bytes)?;
        let config = decode(&bytes)?;
        let accepted = io::stdout().as_fd().try_clone_to_owned()?;
        // From here on stdout is the console, as for any other program.
        dup2_stdout(io::stderr())?;
        let null = fs::File::open("/dev/null")?;
        dup2_stdin(&null)?;
        Ok(u8::try_from(serve(&config, Origin::Image, &accepted)).unwrap_or(1))
    };
    match served() {
        Ok(status) => ExitCode::from(status),
        Err(source) => {
            report(&format!("failed to take over from PID 1: {source}"));
            ExitCode::FAILURE
        }
    }
}

/// Serves until the host asks to power off; the exit status says whether it did.
fn serve(config: &BootConfig, origin: Origin, accepted: &OwnedFd) -> i32 {
    let door = match Door::open(Defences::all_but(&config.relaxed)) {
        Ok(door) => door,
        Err(source) => {
            report(&format!("failed to make the room that commands live in: {source}"));
            return 1;
        }
    };
    let guest = Guest {
        origin,
        root: "/".into(),
        work: Work::Room(door),
        env: config.env.clone(),
        working_directory: config.working_directory.clone(),
    };
    let ready = || {
        // PID 1 is there as long as the machine is.
        let _told = write(accepted, b"1");
    };
    match dial::serve_machine(guest, ready) {
        Ok(()) => 0,
        Err(source) => {
            report(&format!("stopped serving: {source}"));
            1
        }
    }
}
