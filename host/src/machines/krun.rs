// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! A machine as libkrun makes it: the life of the process that becomes one.
//!
//! ```text
//!  runner ── fork ──▶ firmware ─▶ KVM ─▶ devices ─▶ the machine, until it ends; libkrun never gives the process back
//! ```
//!
//! The guest's root is made of this process's memory: the agent, the boot configuration and empty folders, no folder of
//! the host's. It has two disks and one virtual socket, which leads to the host's Unix sockets for the two links. TSI,
//! libkrun's way of giving guests the host's network, is off, and there is no network card.

mod firmware;
mod libkrun;
mod log;
mod unpacked;

use std::{
    ffi::CString,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::AsFd,
        unix::{ffi::OsStrExt, net::UnixStream, process::ExitStatusExt},
    },
    path::Path,
    process::ExitStatus,
};

use waggle_protocol::{CALL_PORT, EGRESS_PORT, boot::BOOT_CONFIG_PATH};

use self::libkrun::Context;
pub(crate) use self::libkrun::FIRMWARE_ABI;
pub(super) use self::{
    firmware::{Firmware, FirmwareFault},
    libkrun::load_firmware,
};
use super::{
    confine::Walls,
    file_names::{KVM, LINK_SOCKETS},
    runner_messages::{KrunConfig, LINE_BYTES_MAX, MachineConfig, Report},
    sys,
};
use crate::machines::agent_binary;

/// The exit code of a process that could not become a machine, and has said why.
const TOLD: i32 = 120;
/// The exit code where libkrun gave up; its log says why.
const REFUSED: i32 = 121;
/// libkrun's own exit code where KVM gave up.
const KVM_FAILED: i32 = 1;
/// Virtual CPUs that libkrunfw's kernel is built for.
pub(super) const CPUS_MAX: u32 = 16;
/// Where libkrun's kernel command line has the kernel look for its first process.
const INIT: &str = "/init.krun";
/// What the agent mounts at, since nothing can be made in this root.
const FOLDERS: [&str; 9] = ["/dev", "/proc", "/sys", "/run", "/tmp", "/root", "/image", "/scratch", "/waggle"];
/// Permissions of folders, of the agent, and of what it is told.
const FOLDER_MODE: u32 = 0o755;
const AGENT_MODE: u32 = 0o755;
const BOOT_MODE: u32 = 0o600;

/// A step that failed before there was a machine.
#[derive(Debug, thiserror::Error)]
#[error("failed to {step}")]
struct Fault {
    step: String,
    source: io::Error,
}

/// Adds to an I/O error what was being done.
trait Step<T> {
    /// Names the step; it reads after "failed to".
    fn step(self, step: &str) -> Result<T, Fault>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: &str) -> Result<T, Fault> {
        self.map_err(|source| Fault { step: step.to_owned(), source: source.into() })
    }
}

/// The whole life of a process that becomes a machine, and its exit code. The working folder is the machine's.
///
/// What fails before the guest runs is told as a [`Report`] on `telling`, which is closed before it does.
pub(super) fn run(machine: &MachineConfig, config: &KrunConfig, walls: &Walls, mut telling: UnixStream) -> i32 {
    match prepare(machine, config, walls, &telling) {
        Ok(context) => {
            drop(telling);
            context.enter();
            REFUSED
        }
        Err(Fault { step, source }) => {
            let report = Report::NotStarted { step, cause: source.to_string() };
            // The runner may be gone; then nobody wants to know.
            let _ = serde_json::to_writer(&mut telling, &report).map(|()| telling.flush());
            TOLD
        }
    }
}

fn prepare(
    machine: &MachineConfig,
    config: &KrunConfig,
    walls: &Walls,
    telling: &UnixStream,
) -> Result<Context, Fault> {
    let null = File::open("/dev/null").step("open /dev/null")?;
    rustix::stdio::dup2_stdin(null).step("close stdin")?;
    sys::close_all_but(telling.as_fd()).step("close what the runner has open")?;
    log::start(config.log_level).step("start libkrun's log")?;
    // libkrun would end the process without a word.
    OpenOptions::new().read(true).write(true).open(KVM).step("open /dev/kvm")?;
    let agent = agent_binary::embedded().ok_or_else(|| io::Error::other("this build has none"));
    let agent = agent.step("find the guest agent")?;
    let boot = fs::read(&config.boot).step("read the boot configuration")?.leak();
    load_firmware(&config.firmware).step(&format!("load {}", config.firmware.display()))?;
    // The kernel is in memory, and of the host's files only the disks are left to open.
    walls.put_up().step("confine the machine")?;
    let devices = || -> io::Result<Context> {
        let context = Context::new()?;
        context.set_size(u8::try_from(machine.cpus).map_err(io::Error::other)?, machine.memory_mib)?;
        context.send_console_to_log()?;
        context.make_root()?;
        for folder in FOLDERS {
            context.add_folder(&c_path(folder)?, FOLDER_MODE)?;
        }
        context.add_file(&c_path(INIT)?, agent, AGENT_MODE)?;
        context.add_file(&c_path(BOOT_CONFIG_PATH)?, boot, BOOT_MODE)?;
        context.add_disk(c"image", &c_path(&machine.image)?, true)?;
        context.add_disk(c"scratch", &c_path(&machine.scratch)?, false)?;
        context.add_vsock()?;
        // Where nobody listens, a guest without a network is told so.
        for port in [CALL_PORT, EGRESS_PORT] {
            context.add_dialled_port(port, &c_path(format!("{LINK_SOCKETS}_{port}"))?)?;
        }
        Ok(context)
    };
    devices().step("describe the machine to libkrun")
}

fn c_path(path: impl AsRef<Path>) -> io::Result<CString> {
    CString::new(path.as_ref().as_os_str().as_bytes()).map_err(io::Error::other)
}

/// What the process told before it ended, if anything.
pub(super) fn reported(told: &UnixStream) -> Option<Report> {
    let mut text = Vec::new();
    told.set_nonblocking(true).ok()?;
    // It has ended, so all that it told is there; its end of the pair may live on in nobody.
    let _ = told.take(LINE_BYTES_MAX).read_to_end(&mut text);
    serde_json::from_slice(&text).ok()
}

/// The report on a process that ended without telling why. An exit code of 0 says nothing: a guest whose kernel panics
/// leaves it just as one that was switched off in order.
pub(super) fn ending(status: Option<ExitStatus>, program: &str) -> Report {
    let how = match status {
        Some(status) if status.success() => "the guest ended its machine".to_owned(),
        Some(status) if status.code() == Some(REFUSED) => "it could not make the machine; the log says why".to_owned(),
        Some(status) if status.code() == Some(KVM_FAILED) => "KVM gave the guest up; the log says why".to_owned(),
        Some(status) if status.core_dumped() || status.signal().is_some() => status.to_string(),
        Some(status) => format!("the guest ended its machine with {status}"),
        None => "nobody knows how".to_owned(),
    };
    Report::Ended { program: program.to_owned(), how }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(status: i32) -> String {
        ending(Some(ExitStatus::from_raw(status)), "libkrun").to_string()
    }

    #[test]
    fn ends_are_told_apart() {
        assert_eq!(told(0), "libkrun ended: the guest ended its machine");
        assert_eq!(told(REFUSED << 8), "libkrun ended: it could not make the machine; the log says why");
        assert_eq!(told(KVM_FAILED << 8), "libkrun ended: KVM gave the guest up; the log says why");
        assert_eq!(told(9), "libkrun ended: signal: 9 (SIGKILL)");
        assert_eq!(told(7 << 8), "libkrun ended: the guest ended its machine with exit status: 7");
    }

    #[test]
    fn a_report_is_read_after_its_writer_has_gone() {
        let (told, telling) = UnixStream::pair().unwrap();
        let report = Report::NotStarted { step: "open /dev/kvm".into(), cause: "Permission denied".into() };
        serde_json::to_writer(&telling, &report).unwrap();
        drop(telling);
        assert_eq!(reported(&told), Some(report));
        let (told, telling) = UnixStream::pair().unwrap();
        drop(telling);
        assert_eq!(reported(&told), None);
    }
}
