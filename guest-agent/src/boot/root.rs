// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The switch to the machine's root, and the mounts of the kernel's file systems before and after the switch.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    unistd::{chdir, chroot, dup2_stderr, dup2_stdin, dup2_stdout},
};

use super::{
    disks::NEW_ROOT,
    folder::{make_folder, make_own_folder},
};
use crate::{
    cgroups,
    mounts::{HARMLESS, make_dev, mount_kernel_fs},
    step::{StepFault, WithStep},
};

/// The space of the inputs of calls: code, and stdin when the disk is full. User processes can't fill it, so that calls
/// work on a full disk. All calls at once have at most 16 MiB of code and 16 MiB of stdin.
const CODE_SPACE: &str = "/run/waggle";

/// Mounts the file systems that the boot needs, and connects stdin, stdout and stderr to the console.
pub(super) fn mount_initial() -> Result<(), StepFault> {
    // If the initial root is a file system and not an initramfs, the kernel may have mounted devtmpfs already.
    match mount(Some("devtmpfs"), "/dev", Some("devtmpfs"), MsFlags::MS_NOSUID, Some("mode=0755")) {
        Ok(()) | Err(Errno::EBUSY) => {}
        Err(errno) => return Err(errno).step(|| "mount devtmpfs at /dev".to_owned()),
    }
    mount_kernel_fs("proc", "/proc", HARMLESS, "")?;
    mount_kernel_fs("sysfs", "/sys", HARMLESS, "")?;
    let console = fs::OpenOptions::new().read(true).write(true).open("/dev/console");
    let console = console.step(|| "open /dev/console".to_owned())?;
    for dup in [dup2_stdin(&console), dup2_stdout(&console), dup2_stderr(&console)] {
        dup.step(|| "connect stdin, stdout and stderr to the console".to_owned())?;
    }
    Ok(())
}

/// Makes the overlay the root. The initial root, which contains the agent, stays mounted under the overlay, where no
/// other process sees the initial root.
pub(super) fn switch_root() -> Result<(), StepFault> {
    let step = || format!("make {NEW_ROOT} the root");
    chdir(NEW_ROOT).step(step)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).step(step)?;
    chroot(".").step(step)?;
    chdir("/").step(step)
}

/// Mounts the file systems that programs in the machine expect, and creates the folders that every program may use.
/// `/run` is the image's folder on the disk: programs need the folders that packages have created there.
pub(super) fn mount_in_root() -> Result<(), StepFault> {
    for folder in ["/proc", "/sys", "/dev", "/tmp", "/var/tmp"] {
        make_folder(folder)?;
    }
    make_own_folder(CODE_SPACE)?;
    mount_kernel_fs("proc", "/proc", HARMLESS, "")?;
    mount_kernel_fs("sysfs", "/sys", HARMLESS | MsFlags::MS_RDONLY, "")?;
    mount_kernel_fs("cgroup2", cgroups::MOUNT, HARMLESS, "")?;
    make_dev()?;
    mount_kernel_fs("tmpfs", CODE_SPACE, HARMLESS, "mode=0755,size=32m,nr_inodes=1k")?;
    for folder in ["/tmp", "/var/tmp"] {
        fs::set_permissions(folder, Permissions::from_mode(0o1777)).step(|| format!("set the mode of {folder}"))?;
    }
    Ok(())
}
