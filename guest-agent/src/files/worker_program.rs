// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The program of file workers, which is the agent's own program.
//!
//! libkrun's initial root is a virtiofs. The kernel drops the cached pages of a file on a virtiofs each time the file
//! is opened. Each start of a worker would therefore make the worker and the agent fetch the program from the host
//! again. On a virtiofs, the agent copies the program into memory once.

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

/// A path to the running program that is independent of the location of its file.
const OWN: &str = "/proc/self/exe";

#[derive(Debug)]
pub(super) enum WorkerProgram {
    /// The program is run from the agent's own file.
    InPlace,
    /// The program is run from a copy in memory.
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
        // Seals protect the copy from changes, because root executes the copy and file permissions do not protect it.
        let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
        fcntl(&copy, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(Self::Copy(copy.into()))
    }

    /// Returns a path to the program that is valid in this process and its children.
    pub(super) fn path(&self) -> PathBuf {
        match self {
            Self::InPlace => OWN.into(),
            Self::Copy(copy) => format!("/proc/self/fd/{}", copy.as_raw_fd()).into(),
        }
    }
}
