// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The program that file workers are started from: the agent's own.
//!
//! libkrun's initial root is a virtiofs, whose files the kernel forgets each time that they are opened: every worker
//! would fetch the program from the host again, and so would the agent the parts of it that it runs. There it is copied
//! into memory once.

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

/// What the running program is called, wherever it lies.
const OWN: &str = "/proc/self/exe";

/// Where a worker's program lies.
#[derive(Debug)]
pub(crate) enum Program {
    /// Where the agent's does.
    InPlace,
    /// In memory.
    Copy(OwnedFd),
}

impl Program {
    /// Looks where the agent's program lies, and copies it if that is far away.
    pub(crate) fn find() -> io::Result<Self> {
        let mut own = File::open(OWN)?;
        if fstatfs(&own)?.filesystem_type() != FUSE_SUPER_MAGIC {
            return Ok(Self::InPlace);
        }
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let mut copy = File::from(memfd_create(c"waggle-agent", flags)?);
        io::copy(&mut own, &mut copy)?;
        // Root runs it, and no permissions of a file's protect it.
        let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
        fcntl(&copy, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(Self::Copy(copy.into()))
    }

    /// A path to start it by, for this process and its children.
    pub(crate) fn path(&self) -> PathBuf {
        match self {
            Self::InPlace => OWN.into(),
            Self::Copy(copy) => format!("/proc/self/fd/{}", copy.as_raw_fd()).into(),
        }
    }
}
