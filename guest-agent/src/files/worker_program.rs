// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The program of file workers: the agent's own.
//!
//! libkrun's initial root is a virtiofs, and the kernel drops a file's cached pages each time that it is opened. Every
//! worker would fetch the program from the host again, and so would the agent for the pages that it runs. There the
//! program is copied into memory once.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::PathBuf,
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        statfs::{FUSE_SUPER_MAGIC, fstatfs},
    },
};

/// The running program, wherever its file is.
const OWN: &str = "/proc/self/exe";

#[derive(Debug)]
pub(super) enum WorkerProgram {
    /// The agent's own file.
    InPlace,
    /// A copy in memory.
    Copy(OwnedFd),
}

impl WorkerProgram {
    /// Copies the agent's program into memory if its file is on a virtiofs.
    pub(super) fn find() -> io::Result<Self> {
        let mut own = File::open(OWN)?;
        if fstatfs(&own)?.filesystem_type() != FUSE_SUPER_MAGIC {
            return Ok(Self::InPlace);
        }
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let mut copy = File::from(memfd_create(c"waggle-agent", flags)?);
        io::copy(&mut own, &mut copy)?;
        // Root executes it, and it has no file permissions that protect it.
        let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
        fcntl(&copy, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(Self::Copy(copy.into()))
    }

    /// A path to start it from, valid for this process and its children.
    pub(super) fn path(&self) -> PathBuf {
        match self {
            Self::InPlace => OWN.into(),
            Self::Copy(copy) => format!("/proc/self/fd/{}", copy.as_raw_fd()).into(),
        }
    }
}
