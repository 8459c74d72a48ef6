// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The platform of the calls: a machine dedicated to the agent, or a machine that the agent shares with other programs.

use std::{
    fs::File,
    future::pending,
    io,
    os::{fd::AsFd, unix::fs::fchown},
    time::Duration,
};

use nix::{
    libc,
    sys::{
        stat::{Mode, fchmod},
        time::TimeSpec,
    },
    time::{ClockId, clock_gettime, clock_settime},
};
use tokio::task::spawn_blocking;
use waggle_protocol::{Welcome, request::User};

use crate::{
    console::report,
    guest,
    identity::Identity,
    sandbox::Sandbox,
    sandbox_user::{SANDBOX_ID, SandboxUser},
    step::WithStep,
    sys,
};

/// The device of the kernel's random number generator, in the machine's `/dev`, which user processes do not see.
const RANDOM: &str = "/dev/urandom";

/// Maximum difference from the host's time that is corrected gradually, so that programs never see the clock go back.
/// The kernel corrects 0.5 ms each second; a larger difference means that the machine was stopped.
const GRADUAL_MAX: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) enum Platform {
    /// A dedicated machine. Commands run in the sandbox.
    Machine(Sandbox),
    /// A shared machine. Commands run as the user that runs the agent, and system settings do not change.
    Caller,
}

impl Platform {
    /// Connects to the sandbox if the mode has one. Must be called in a Tokio runtime.
    pub(crate) fn start(mode: guest::Mode) -> io::Result<Self> {
        match mode {
            guest::Mode::Sandbox(spawner) => Ok(Self::Machine(Sandbox::connect(spawner)?)),
            guest::Mode::Caller => Ok(Self::Caller),
        }
    }

    /// Returns the user that calls run as in a machine.
    pub(crate) fn sandbox_user(&self) -> SandboxUser {
        match self {
            Self::Machine(sandbox) => sandbox.user().clone(),
            Self::Caller => SandboxUser::default(),
        }
    }

    /// Makes `user` the owner of a file or pipe that the agent created. Opening a pipe again by name (`/dev/stdout`)
    /// checks its permissions, so pipes also need the right owner.
    pub(crate) fn set_owner(&self, file: impl AsFd, user: User) -> io::Result<()> {
        match (self, user) {
            (Self::Machine(sandbox), User::Sandbox) => {
                fchown(file, Some(SANDBOX_ID), Some(sandbox.user().groups.primary))
            }
            (Self::Machine(_), User::Root) | (Self::Caller, _) => Ok(()),
        }
    }

    /// Lets the commands of `user` read a file that the agent created, but not change it.
    pub(crate) fn let_read(&self, file: impl AsFd, user: User) -> io::Result<()> {
        match (self, user) {
            (Self::Machine(sandbox), User::Sandbox) => {
                fchown(&file, None, Some(sandbox.user().groups.primary))?;
                Ok(fchmod(file, Mode::S_IRUSR | Mode::S_IRGRP)?)
            }
            (Self::Machine(_), User::Root) | (Self::Caller, _) => Ok(()),
        }
    }

    /// Sets the machine's clock to `unix_ns`, in nanoseconds since the Unix epoch. The guest can't reach NTP servers,
    /// and TLS fails if the time is wrong.
    pub(crate) fn set_clock(&self, unix_ns: u64) -> nix::Result<()> {
        match self {
            Self::Machine(_) => {
                clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(Duration::from_nanos(unix_ns)))
            }
            Self::Caller => Ok(()),
        }
    }

    /// Makes the machine the one of the welcome. No command may start before this returns. Before the first welcome, no
    /// program of a user runs; before later ones, those of the machine that this one is a copy of may run.
    pub(crate) async fn apply(&self, welcome: &Welcome, is_first: bool) -> io::Result<()> {
        let Self::Machine(sandbox) = self else { return Ok(()) };
        let set = if is_first { self.set_clock(welcome.unix_ns) } else { self.correct_clock(welcome.unix_ns) };
        if let Err(errno) = set {
            report(&format!("failed to set the clock: {errno}"));
        }
        // A failure ends the start. In a copy of another machine, programs would otherwise get that machine's secrets.
        let reseeded = File::open(RANDOM).and_then(|device| Ok(sys::reseed(device.as_fd(), &welcome.seed.0)?));
        reseeded.step(|| "give the host's random bytes to the kernel".to_owned()).map_err(io::Error::other)?;
        sandbox.identify(&Identity::draw(&welcome.hostname)?).await
    }

    /// Corrects the machine's clock to `unix_ns`, in nanoseconds since the Unix epoch, while programs run.
    pub(crate) fn correct_clock(&self, unix_ns: u64) -> nix::Result<()> {
        let Self::Machine(_) = self else { return Ok(()) };
        let (now, shown) = (Duration::from_nanos(unix_ns), Duration::from(clock_gettime(ClockId::CLOCK_REALTIME)?));
        match gradual_correction_us(now, shown) {
            Some(microseconds) => sys::adjust_clock(microseconds),
            None => self.set_clock(unix_ns),
        }
    }

    /// Writes unsaved data of the machine's file systems to the disks.
    pub(crate) async fn sync(&self) {
        if let Self::Machine(_) = self {
            let _synced = spawn_blocking(nix::unistd::sync).await;
        }
    }

    /// Resolves when commands can no longer be started.
    pub(crate) async fn failed(&self) {
        match self {
            Self::Machine(sandbox) => sandbox.exited().await,
            Self::Caller => pending().await,
        }
    }
}

/// Returns the correction of a clock that shows `shown` at the time `now`, in microseconds; `None` if the clock must be
/// set at once. Both times count from the Unix epoch.
fn gradual_correction_us(now: Duration, shown: Duration) -> Option<libc::c_long> {
    let difference = now.abs_diff(shown);
    let microseconds = libc::c_long::try_from(difference.as_micros()).ok()?;
    (difference < GRADUAL_MAX).then_some(if now < shown { -microseconds } else { microseconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_differences_below_a_second_are_corrected_gradually() {
        let at = |milliseconds: u64| Duration::from_millis(1_800_000_000_000 + milliseconds);
        for (now, shown, expected) in [
            (at(0), at(0), Some(0)),
            (at(0), at(999), Some(-999_000)),
            (at(999), at(0), Some(999_000)),
            (at(1000), at(0), None),
            (at(0), at(1000), None),
        ] {
            assert_eq!(gradual_correction_us(now, shown), expected);
        }
    }
}
