// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The platform of the calls: a machine dedicated to the agent, or a machine that the agent shares with other programs.

use std::{
    future::pending,
    io,
    os::{fd::AsFd, unix::fs::fchown},
    time::Duration,
};

use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_settime},
};
use tokio::task::spawn_blocking;
use waggle_protocol::request::User;

use crate::{guest::Mode, sandbox::Sandbox, sandbox_user::SANDBOX_ID};

#[derive(Debug)]
pub(crate) enum Platform {
    /// A dedicated machine. Commands run in the sandbox.
    Machine(Sandbox),
    /// A shared machine. Commands run as the user that runs the agent, and system settings do not change.
    Caller,
}

impl Platform {
    /// Connects to the sandbox if the mode has one. Must be called in a Tokio runtime.
    pub(crate) fn start(mode: Mode) -> io::Result<Self> {
        match mode {
            Mode::Sandbox(spawner) => Ok(Self::Machine(Sandbox::connect(spawner)?)),
            Mode::Caller => Ok(Self::Caller),
        }
    }

    /// Makes `user` the owner of a file or pipe that the agent created. Opening a pipe again by name (`/dev/stdout`)
    /// checks its permissions, so pipes also need the right owner.
    pub(crate) fn set_owner(&self, file: impl AsFd, user: User) -> io::Result<()> {
        match (self, user) {
            (Self::Machine(_), User::Sandbox) => fchown(file, Some(SANDBOX_ID), Some(SANDBOX_ID)),
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
