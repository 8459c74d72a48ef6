// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The process that becomes a machine of libkrun, or of its fork `msb_krun`.
//!
//! ```text
//!  runner ── fork ──▶ firmware ─▶ KVM ─▶ devices ─▶ the machine; when it ends, the process exits
//! ```
//!
//! The guest's initial root is in this process's memory. It contains the agent, the boot configuration and empty
//! folders, but no folder of the host. The guest has two disks and one virtual socket device. This device forwards the
//! two links to Unix sockets of the host. The guest has no network card. TSI, the mechanism of both libraries that lets
//! guests use the host's network, is off.

mod firmware;
mod guest_files;
mod libkrun;
mod log;
#[cfg(feature = "msb")]
mod msb;

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

#[cfg(test)]
pub(super) use self::firmware::unpack;
pub(crate) use self::libkrun::FIRMWARE_ABI;
pub(super) use self::{
    firmware::{DIED, Firmware, FirmwareFault},
    libkrun::load_firmware,
};
use self::{
    guest_files::{AGENT_MODE, BOOT_MODE, FOLDER_MODE, FOLDERS, GuestFiles, INIT},
    libkrun::Context,
};
use super::{
    confine::Confinement,
    file_names::{KVM, LINK_SOCKETS},
    runner_messages::{KrunConfig, LINE_BYTES_MAX, Library, MachineConfig, Report},
    sys,
};
use crate::machines::agent_binary;

/// Exit code of a process that failed to become a machine and has reported the reason.
const REPORTED: i32 = 120;
/// Exit code if the library failed to start the machine. Its log has the reason.
const START_FAILED: i32 = 121;
/// The libraries' own exit code after an error of KVM.
const KVM_FAILED: i32 = 1;

/// A step that failed before the machine ran.
#[derive(Debug, thiserror::Error)]
#[error("failed to {step}")]
struct Fault {
    step: String,
    source: io::Error,
}

/// Adds the failed step to an I/O error.
trait Step<T> {
    /// `step` completes the sentence "failed to …".
    fn step(self, step: &str) -> Result<T, Fault>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: &str) -> Result<T, Fault> {
        self.map_err(|source| Fault { step: step.to_owned(), source: source.into() })
    }
}

/// Turns this process into a configured machine. Returns only if the library failed to start the machine.
type Enter = Box<dyn FnOnce()>;

/// Turns this process into the machine whose run folder is the working folder. Returns an exit code if that fails.
///
/// An error before the guest runs is written to `report_writer` as a [`Report`]. `report_writer` is closed before the
/// guest starts.
pub(super) fn run(
    machine: &MachineConfig,
    config: &KrunConfig,
    confinement: &Confinement,
    mut report_writer: UnixStream,
) -> i32 {
    match prepare(machine, config, confinement, &report_writer) {
        Ok(enter) => {
            drop(report_writer);
            enter();
            START_FAILED
        }
        Err(Fault { step, source }) => {
            let report = Report::NotStarted { step, cause: source.to_string() };
            // The write fails if the runner has ended, and then no process needs the report.
            let _ = serde_json::to_writer(&mut report_writer, &report).map(|()| report_writer.flush());
            REPORTED
        }
    }
}

fn prepare(
    machine: &MachineConfig,
    config: &KrunConfig,
    confinement: &Confinement,
    report_writer: &UnixStream,
) -> Result<Enter, Fault> {
    let null = File::open("/dev/null").step("open /dev/null")?;
    rustix::stdio::dup2_stdin(null).step("close stdin")?;
    sys::close_all_but(report_writer.as_fd()).step("close the runner's descriptors")?;
    log::start(config.log_level).step("start the log")?;
    // Without access to KVM, the library would exit without an error message.
    OpenOptions::new().read(true).write(true).open(KVM).step("open /dev/kvm")?;
    let agent = agent_binary::embedded().ok_or_else(|| io::Error::other("this build contains none"));
    let agent = agent.step("find the guest agent")?;
    let files = GuestFiles { agent, boot: fs::read(&config.boot).step("read the boot configuration")?.leak() };
    load_firmware(&config.firmware).step(&format!("load {}", config.firmware.display()))?;
    // The guest's kernel is in memory now, so the confined process need not open the firmware.
    match config.library {
        Library::Libkrun => {
            confinement.apply().step("confine the machine")?;
            let context = describe(machine, files).step("describe the machine to libkrun")?;
            Ok(Box::new(|| context.enter()))
        }
        #[cfg(feature = "msb")]
        Library::Msb => {
            let root = msb::Root::new(files).step("create the initial root")?;
            msb::separate_output().step("separate the output of the guest from that of the VMM")?;
            confinement.apply().step("confine the machine")?;
            let vm = msb::describe(machine, root).step("describe the machine to msb_krun")?;
            Ok(Box::new(|| msb::enter(vm)))
        }
        #[cfg(not(feature = "msb"))]
        Library::Msb => Err(io::Error::other("this program was built without it")).step("start msb_krun"),
    }
}

fn describe(machine: &MachineConfig, files: GuestFiles) -> io::Result<Context> {
    let context = Context::new()?;
    context.set_size(u8::try_from(machine.cpus).map_err(io::Error::other)?, machine.memory_mib)?;
    context.send_console_to_log()?;
    context.make_root()?;
    for folder in FOLDERS {
        context.add_folder(&c_path(folder)?, FOLDER_MODE)?;
    }
    context.add_file(&c_path(INIT)?, files.agent, AGENT_MODE)?;
    context.add_file(&c_path(BOOT_CONFIG_PATH)?, files.boot, BOOT_MODE)?;
    context.add_disk(c"image", &c_path(&machine.image)?, true)?;
    context.add_disk(c"scratch", &c_path(&machine.scratch)?, false)?;
    context.add_vsock()?;
    // A machine without a network has no listener for the egress port, so the guest's connection fails.
    for port in [CALL_PORT, EGRESS_PORT] {
        context.add_dialled_port(port, &c_path(format!("{LINK_SOCKETS}_{port}"))?)?;
    }
    Ok(context)
}

fn c_path(path: impl AsRef<Path>) -> io::Result<CString> {
    CString::new(path.as_ref().as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Reads the report of an ended process, if the process sent one.
pub(super) fn read_report(reports: &UnixStream) -> Option<Report> {
    let mut text = Vec::new();
    reports.set_nonblocking(true).ok()?;
    // The process has ended, so its whole report is in the socket's buffer.
    let _ = reports.take(LINE_BYTES_MAX).read_to_end(&mut text);
    serde_json::from_slice(&text).ok()
}

/// Returns a report for a process that ended without sending one. Exit code 0 is ambiguous: a kernel panic and an
/// ordinary shutdown of the guest both cause it.
pub(super) fn exit_report(status: Option<ExitStatus>, program: &str) -> Report {
    let how = match status {
        Some(status) if status.success() => "the guest ended its machine".to_owned(),
        Some(status) if status.code() == Some(START_FAILED) => {
            format!("{program} failed to start the machine; see the log")
        }
        Some(status) if status.code() == Some(KVM_FAILED) => "KVM could not continue the guest; see the log".to_owned(),
        Some(status) if status.core_dumped() || status.signal().is_some() => status.to_string(),
        Some(status) => format!("the guest ended its machine with {status}"),
        None => "unknown exit status".to_owned(),
    };
    Report::Ended { program: program.to_owned(), how }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(status: i32) -> String {
        exit_report(Some(ExitStatus::from_raw(status)), "libkrun").to_string()
    }

    #[test]
    fn each_exit_status_has_its_own_text() {
        assert_eq!(text(0), "libkrun ended: the guest ended its machine");
        assert_eq!(text(START_FAILED << 8), "libkrun ended: libkrun failed to start the machine; see the log");
        assert_eq!(text(KVM_FAILED << 8), "libkrun ended: KVM could not continue the guest; see the log");
        assert_eq!(text(9), "libkrun ended: signal: 9 (SIGKILL)");
        assert_eq!(text(7 << 8), "libkrun ended: the guest ended its machine with exit status: 7");
    }

    #[test]
    fn report_is_readable_after_its_writer_ended() {
        let (reports, report_writer) = UnixStream::pair().unwrap();
        let report = Report::NotStarted { step: "open /dev/kvm".into(), cause: "Permission denied".into() };
        serde_json::to_writer(&report_writer, &report).unwrap();
        drop(report_writer);
        assert_eq!(read_report(&reports), Some(report));
        let (reports, report_writer) = UnixStream::pair().unwrap();
        drop(report_writer);
        assert_eq!(read_report(&reports), None);
    }
}
