// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The folder in which QEMU writes the state of its devices. It is a small file system in memory, because QEMU may keep
//! each file open after a guest has taken it over, and could fill them all.

use std::{
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::Path,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, unlinkat};

use crate::machines::runner_messages::DEVICES_BYTES_MAX;

/// Mount point in the run folder.
const FOLDER: &str = ".devices";
const FILE: &str = "devices";

/// An open folder, which no path leads to.
pub(super) struct DevicesFolder(OwnedFd);

impl DevicesFolder {
    /// Creates the folder. Only for a process in its own user namespace, which gets its own mount namespace.
    ///
    /// # Errors
    /// The kernel's error.
    pub(super) fn mount() -> io::Result<Self> {
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>)?;
        fs::create_dir(FOLDER)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let options = format!("size={DEVICES_BYTES_MAX},nr_inodes=16,mode=0700");
        mount(Some("tmpfs"), FOLDER, Some("tmpfs"), flags, Some(options.as_str()))?;
        let folder = Self::open(Path::new(FOLDER));
        umount2(FOLDER, MntFlags::MNT_DETACH)?;
        fs::remove_dir(FOLDER)?;
        folder
    }

    /// Opens a folder on the disk, for a host that allows no namespaces.
    ///
    /// # Errors
    /// The kernel's error.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(Self(openat(CWD, path, flags, Mode::empty())?))
    }

    /// Creates a file without a name.
    ///
    /// # Errors
    /// The kernel's error.
    pub(super) fn file(&self) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = openat(&self.0, FILE, flags, Mode::RUSR | Mode::WUSR)?;
        unlinkat(&self.0, FILE, AtFlags::empty())?;
        Ok(file.into())
    }
}
