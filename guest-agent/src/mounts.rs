// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Mounts the kernel's own file systems, for the machine and again for its sandbox.
//!
//! `/dev` has a fixed list of devices. devtmpfs would show the disks and the ports to the host to every program in the
//! guest.

use std::{fs, os::unix::fs::symlink};

use nix::{
    mount::{MsFlags, mount},
    sys::stat::{Mode, SFlag, makedev, mknod, umask},
};

use crate::step::{StepFault, WithStep};

/// Flags for a mount that ignores set-user-id bits and allows neither executables nor devices.
pub(crate) const HARMLESS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC).union(MsFlags::MS_NODEV);

/// Character devices that every program may expect: name, major and minor number.
const DEVICES: &[(&str, u64, u64)] =
    &[("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Links in `/dev` that every program may expect.
const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Mounts a `/dev` that contains only standard devices and links.
pub(crate) fn make_dev() -> Result<(), StepFault> {
    mount_kernel_fs("tmpfs", "/dev", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, "mode=0755,size=64k")?;
    let terminals = "newinstance,ptmxmode=0666,mode=0620";
    mount_kernel_fs("devpts", "/dev/pts", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, terminals)?;
    mount_kernel_fs("tmpfs", "/dev/shm", HARMLESS, "mode=1777")?;
    let usual = umask(Mode::empty());
    for (name, major, minor) in DEVICES {
        let path = format!("/dev/{name}");
        mknod(path.as_str(), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(*major, *minor))
            .step(|| format!("create {path}"))?;
    }
    umask(usual);
    for (name, target) in LINKS {
        let path = format!("/dev/{name}");
        symlink(target, &path).step(|| format!("create {path}"))?;
    }
    Ok(())
}

/// Mounts a kernel file system. Creates the mount point if the image lacks it.
pub(crate) fn mount_kernel_fs(kind: &str, folder: &str, flags: MsFlags, options: &str) -> Result<(), StepFault> {
    fs::create_dir_all(folder).step(|| format!("create {folder}"))?;
    mount(Some(kind), folder, Some(kind), flags, Some(options)).step(|| format!("mount {kind} at {folder}"))
}
