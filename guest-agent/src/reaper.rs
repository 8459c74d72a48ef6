// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! PID 1 after the boot: reaps orphans, starts the network's process again should it end, and powers the machine off
//! when the serving child is gone.
//!
//! The child serves, PID 1 only reaps: so `waitpid(-1)` here never races a wait for one child there.

use std::{
    fs::File,
    io::Read,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    process::ExitStatus,
};

use nix::{
    errno::Errno,
    sys::{
        reboot::{RebootMode, reboot},
        wait::WaitPidFlag,
    },
    unistd::{Pid, sync},
};

use crate::{console::report, egress::Egress, sys};

/// A child that serves, and the pipe on which it says that the host has accepted it.
#[derive(Debug)]
pub struct Serving {
    /// The child.
    pub pid: Pid,
    /// The pipe's reading end, non-blocking.
    pub ready: OwnedFd,
}

/// Reaps until the serving child is gone. If it goes before the host has accepted it, `second` starts another, once.
pub(crate) fn reap_until_gone(
    first: Serving,
    second: Option<impl FnOnce(&mut Option<Egress>) -> nix::Result<Serving>>,
    egress: &mut Option<Egress>,
) {
    let mut serving = first;
    let mut second = second;
    loop {
        let (pid, status) = match sys::wait_raw(WaitPidFlag::empty()) {
            Ok(Some(ended)) => ended,
            Ok(None) | Err(Errno::EINTR) => continue,
            Err(errno) => return report(&format!("failed to wait for children: {errno}")),
        };
        let status = ExitStatus::from_raw(status);
        if pid != serving.pid {
            if let Some(egress) = egress {
                egress.heed(pid, status);
            }
            continue;
        }
        let accepted = was_accepted(&serving.ready);
        match second.take() {
            Some(start) if !accepted => {
                report(&format!("the image's agent did not come up ({status}); the host's takes its place"));
                match start(egress) {
                    Ok(started) => serving = started,
                    Err(errno) => return report(&format!("failed to start the host's agent: {errno}")),
                }
            }
            _ => return report(&format!("the agent is gone ({status})")),
        }
    }
}

fn was_accepted(ready: &OwnedFd) -> bool {
    let Ok(pipe) = ready.try_clone() else { return false };
    matches!(File::from(pipe).read(&mut [0]), Ok(1))
}

/// Writes everything to the disks and ends the machine. A restart is what every back end takes for the end: a power-off
/// leaves libkrun running.
pub fn end_machine() {
    sync();
    let Err(errno) = reboot(RebootMode::RB_AUTOBOOT);
    report(&format!("failed to end the machine: {errno}"));
}
