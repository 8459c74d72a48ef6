// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The platform that calls run on: a machine of the agent's own with its sandbox, or whatever machine the agent's
//! caller runs it on.

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
    /// A machine of the agent's own; commands run in the sandbox.
    Machine(Sandbox),
    /// Another's machine; commands run as the agent's own user, and the system stays as it is.
    Caller,
}

impl Platform {
    /// Must run in a runtime.
    pub(crate) fn start(mode: Mode) -> io::Result<Self> {
        match mode {
            Mode::Sandbox(spawner) => Ok(Self::Machine(Sandbox::connect(spawner)?)),
            Mode::Caller => Ok(Self::Caller),
        }
    }

    /// Makes `user` the owner of a file or pipe that the agent created. A pipe needs it as well, because opening it
    /// again by name (`/dev/stdout`) checks its permissions.
    pub(crate) fn set_owner(&self, file: impl AsFd, user: User) -> io::Result<()> {
        match (self, user) {
            (Self::Machine(_), User::Sandbox) => fchown(file, Some(SANDBOX_ID), Some(SANDBOX_ID)),
            (Self::Machine(_), User::Root) | (Self::Caller, _) => Ok(()),
        }
    }

    /// Sets the machine's clock, in nanoseconds since the epoch. A guest without a network has no other time source,
    /// and TLS fails with a wrong time.
    pub(crate) fn set_clock(&self, unix_ns: u64) -> nix::Result<()> {
        match self {
            Self::Machine(_) => {
                clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(Duration::from_nanos(unix_ns)))
            }
            Self::Caller => Ok(()),
        }
    }

    /// Writes the machine's file systems to their disks.
    pub(crate) async fn sync(&self) {
        if let Self::Machine(_) = self {
            let _synced = spawn_blocking(nix::unistd::sync).await;
        }
    }

    /// Resolves when no more commands can be started.
    pub(crate) async fn failed(&self) {
        match self {
            Self::Machine(sandbox) => sandbox.exited().await,
            Self::Caller => pending().await,
        }
    }
}
