// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! A root file system with only the files that a process needs, each at its usual path.

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

/// Mount point of the new root in the machine's folder; only this process sees the mount.
const NEW_ROOT: &str = ".root";
/// Options of the new root's tmpfs, which contains only mount points and symbolic links.
const TMPFS_OPTIONS: &str = "mode=0755,size=256k";
/// Files that dynamically linked programs need, on any distribution.
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

/// The folder in which a process finds the files that it has inherited.
pub(crate) const OWN_DESCRIPTORS: &str = "/proc/self/fd";

#[derive(Clone, Copy, Debug)]
enum Access {
    Read,
    Write,
}

/// The content of a root.
#[derive(Clone, Debug)]
pub(crate) struct RootFiles {
    /// The process's working folder. It is read-only.
    pub(crate) folder: PathBuf,
    /// The files in the folder that the process may write to.
    pub(crate) writable: Vec<PathBuf>,
    /// Files and folders that the process may read. Missing ones are skipped.
    pub(crate) read_only: Vec<PathBuf>,
    pub(crate) devices: Vec<&'static str>,
    /// Whether the process may open its own descriptors again. They keep their restrictions: a file on a read-only
    /// mount stays read-only, and a sealed file stays sealed.
    pub(crate) own_descriptors: bool,
}

impl RootFiles {
    /// Adds a dynamically linked program and the libraries that the program may need.
    pub(crate) fn with_program(mut self, program: &Path) -> Self {
        self.read_only.extend(SYSTEM.map(PathBuf::from));
        self.read_only.push(program.to_owned());
        self
    }

    /// Lets the process open its own descriptors again.
    pub(crate) fn with_own_descriptors(mut self) -> Self {
        self.own_descriptors = true;
        self
    }

    /// Replaces this process's root by a root with only the files. The process must have its own mount namespace.
    pub(super) fn enter_root(&self) -> io::Result<()> {
        make_mounts_private()?;
        let new_root = self.folder.join(NEW_ROOT);
        fs::create_dir_all(&new_root)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("tmpfs"), &new_root, Some("tmpfs"), flags, Some(TMPFS_OPTIONS))?;
        self.bind_folder(&new_root)?;
        for path in &self.read_only {
            bind(path, &new_root, Access::Read)?;
        }
        for device in &self.devices {
            bind(Path::new(device), &new_root, Access::Write)?;
        }
        if self.own_descriptors {
            // The mount is of this process's folder, also if another process looks at it.
            bind(Path::new(OWN_DESCRIPTORS), &new_root, Access::Read)?;
        }
        // The kernel stacks the old root on the new one until the umount, so the old root needs no mount point.
        env::set_current_dir(&new_root)?;
        pivot_root(".", ".")?;
        umount2(".", MntFlags::MNT_DETACH)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | flags, Some(TMPFS_OPTIONS))?;
        env::set_current_dir(&self.folder)
    }

    /// Mounts the working folder read-only, and its writable files above it.
    fn bind_folder(&self, new_root: &Path) -> io::Result<()> {
        let place = place_of(&self.folder, new_root);
        fs::create_dir_all(&place)?;
        // Not recursive: the folder contains the mount of the new root itself.
        mount(Some(&self.folder), &place, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        make_read_only(&place)?;
        for file in &self.writable {
            let (file, place) = (self.folder.join(file), place.join(file));
            mount(Some(&file), &place, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        }
        Ok(())
    }

    /// Checks that the kernel lets this process mount a tmpfs.
    pub(super) fn check_mounting(&self) -> io::Result<()> {
        make_mounts_private()?;
        Ok(mount(Some("tmpfs"), &self.folder, Some("tmpfs"), MsFlags::empty(), Some(TMPFS_OPTIONS))?)
    }
}

fn make_mounts_private() -> io::Result<()> {
    Ok(mount(None::<&str>, "/", None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>)?)
}

/// Where a file of this process's root appears in the new root.
fn place_of(path: &Path, new_root: &Path) -> PathBuf {
    new_root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Mounts `path` at the same path in the new root. A symbolic link is copied instead.
fn bind(path: &Path, new_root: &Path, access: Access) -> io::Result<()> {
    let place = place_of(path, new_root);
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
        // The path is in a folder that has been mounted already.
        return Ok(());
    }
    let recursive = if kind.is_dir() {
        fs::create_dir_all(&place)?;
        MsFlags::MS_REC
    } else {
        fs::write(&place, [])?;
        MsFlags::empty()
    };
    mount(Some(path), &place, None::<&str>, MsFlags::MS_BIND | recursive, None::<&str>)?;
    match access {
        Access::Read => make_read_only(&place),
        Access::Write => Ok(()),
    }
}

fn make_read_only(place: &Path) -> io::Result<()> {
    match sys::make_mounts_read_only(place) {
        Err(fault) if fault.raw_os_error() == Some(libc::ENOSYS) => {
            // Before Linux 5.12, mounts below `place` stay writable. In a user namespace, a remount must not clear
            // flags that the host has set, so these flags are passed again.
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | current_flags(place)?;
            Ok(mount(None::<&str>, place, None::<&str>, flags, None::<&str>)?)
        }
        made => made,
    }
}

fn current_flags(place: &Path) -> io::Result<MsFlags> {
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
