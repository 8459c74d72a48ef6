// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! PID 1 after the boot: reaps orphans, restarts the network process if it exits, and ends the machine when the serving
//! child has exited.
//!
//! PID 1 only reaps, and never waits for one specific child, so its `waitpid(-1)` competes with no other wait.

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

use crate::{console::report, host_links::HostLinks, sys};

/// A serving child, and the pipe through which the child reports that it is ready: it has applied the host's welcome.
#[derive(Debug)]
pub struct Serving {
    pub pid: Pid,
    /// The reading end of the pipe, non-blocking.
    pub ready: OwnedFd,
}

/// Reaps children until the serving child has exited. If that child had not applied the host's welcome, `second` starts
/// another serving child, but only once.
pub(crate) fn reap_until_exit(
    first: Serving,
    second: Option<impl FnOnce(&mut HostLinks) -> nix::Result<Serving>>,
    links: &mut HostLinks,
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
            links.on_exit(pid, status);
            continue;
        }
        let was_ready = was_ready(&serving.ready);
        match second.take() {
            Some(start) if !was_ready => {
                report(&format!("the image's agent exited before it was ready ({status}); starting the host's agent"));
                match start(links) {
                    Ok(started) => serving = started,
                    Err(errno) => return report(&format!("failed to start the host's agent: {errno}")),
                }
            }
            _ => return report(&format!("the agent has exited ({status})")),
        }
    }
}

fn was_ready(ready: &OwnedFd) -> bool {
    let Ok(pipe) = ready.try_clone() else { return false };
    matches!(File::from(pipe).read(&mut [0]), Ok(1))
}

/// Writes all data to the disks and ends the machine. Reboots, because libkrun would keep running after a power-off.
pub fn end_machine() {
    sync();
    let Err(errno) = reboot(RebootMode::RB_AUTOBOOT);
    report(&format!("failed to end the machine: {errno}"));
}
