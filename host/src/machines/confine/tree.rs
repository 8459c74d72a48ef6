// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! A root that holds nothing but the files that a process needs, each at its own path.

use std::{
    env, fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use nix::{
    libc,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statvfs::{FsFlags, statvfs},
    unistd::pivot_root,
};

use crate::machines::sys;

/// Where the root is put together: in the machine's folder, seen by nobody else.
const NEW_ROOT: &str = ".root";
/// It holds a few folders and empty files to mount at.
const SIZE: &str = "mode=0755,size=256k";
/// What programs are made of, on every system.
const SYSTEM: [&str; 9] = [
    "/usr",
    "/lib",
    "/lib64",
    "/bin",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/nix/store",
    "/gnu/store",
];

/// What a process finds in its root.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    /// Its working folder, which it may write to.
    pub(crate) folder: PathBuf,
    /// Files and folders that it may read; those that do not exist are passed over.
    pub(crate) read_only: Vec<PathBuf>,
    /// Devices.
    pub(crate) devices: Vec<&'static str>,
}

impl Files {
    /// Adds what a dynamically linked program is made of.
    pub(crate) fn with_program(mut self, program: &Path) -> Self {
        self.read_only.extend(SYSTEM.map(PathBuf::from));
        self.read_only.push(program.to_owned());
        self
    }

    /// Makes them the root of this process, which has a mount namespace of its own.
    pub(super) fn become_root(&self) -> io::Result<()> {
        private()?;
        let new_root = self.folder.join(NEW_ROOT);
        fs::create_dir_all(&new_root)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("tmpfs"), &new_root, Some("tmpfs"), flags, Some(SIZE))?;
        show(&self.folder, &new_root, MsFlags::empty())?;
        for path in &self.read_only {
            show(path, &new_root, MsFlags::MS_RDONLY)?;
        }
        for device in &self.devices {
            show(Path::new(device), &new_root, MsFlags::empty())?;
        }
        // The old root is stacked on the new one for a moment, so it needs no place of its own.
        env::set_current_dir(&new_root)?;
        pivot_root(".", ".")?;
        umount2(".", MntFlags::MNT_DETACH)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | flags, Some(SIZE))?;
        env::set_current_dir(&self.folder)
    }

    /// Whether the kernel lets this process mount at all.
    pub(super) fn may_be_mounted(&self) -> io::Result<()> {
        private()?;
        Ok(mount(Some("tmpfs"), &self.folder, Some("tmpfs"), MsFlags::empty(), Some(SIZE))?)
    }
}

fn private() -> io::Result<()> {
    Ok(mount(None::<&str>, "/", None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>)?)
}

/// Mounts `path` at the same path in the new root; a link becomes a link.
fn show(path: &Path, new_root: &Path, flags: MsFlags) -> io::Result<()> {
    let place = new_root.join(path.strip_prefix("/").unwrap_or(path));
    let kind = match path.symlink_metadata() {
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => return Ok(()),
        kind => kind?.file_type(),
    };
    if let Some(parent) = place.parent() {
        fs::create_dir_all(parent)?;
    }
    if kind.is_symlink() {
        return match symlink(fs::read_link(path)?, &place) {
            Err(fault) if fault.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made,
        };
    }
    if place.exists() {
        // It is in something that has been shown already.
        return Ok(());
    }
    if kind.is_dir() {
        fs::create_dir_all(&place)?;
    } else {
        fs::write(&place, [])?;
    }
    // The one folder that can be written to is new, and holds no other mount than the new root itself.
    let recursive = if kind.is_dir() && !flags.is_empty() { MsFlags::MS_REC } else { MsFlags::empty() };
    mount(Some(path), &place, None::<&str>, MsFlags::MS_BIND | recursive, None::<&str>)?;
    if flags.is_empty() {
        return Ok(());
    }
    match sys::make_mounts_read_only(&place) {
        Err(fault) if fault.raw_os_error() == Some(libc::ENOSYS) => {
            // Before Linux 5.12, what is mounted below stays as it is. Flags that the host has set may not be taken
            // away in a user namespace, so they are given again.
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | flags | set_already(&place)?;
            Ok(mount(None::<&str>, &place, None::<&str>, flags, None::<&str>)?)
        }
        made => made,
    }
}

fn set_already(place: &Path) -> io::Result<MsFlags> {
    let found = statvfs(place)?.flags();
    let pairs = [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ];
    Ok(pairs.into_iter().filter(|(set, _)| found.contains(*set)).map(|(_, flag)| flag).collect())
}
