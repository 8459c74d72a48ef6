// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The kernel's own file systems, before and after the switch to the machine's root.
//!
//! The machine's `/dev` is made by hand: devtmpfs would show the disks and the vsock device to everyone in the guest.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, symlink},
};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sys::stat::{Mode, SFlag, makedev, mknod, umask},
    unistd::{chdir, chroot, dup2_stderr, dup2_stdin, dup2_stdout},
};

use super::{BootFault, Step, disks::NEW_ROOT};
use crate::cgroups;

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

/// Mounts what the boot itself needs, and opens the console.
pub(super) fn mount_initial() -> Result<(), BootFault> {
    let harmless = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    // A kernel that starts from a file system rather than from an initramfs may have put it there itself.
    match mount(Some("devtmpfs"), "/dev", Some("devtmpfs"), MsFlags::MS_NOSUID, Some("mode=0755")) {
        Ok(()) | Err(Errno::EBUSY) => {}
        Err(errno) => return Err(errno).step(|| "mount devtmpfs at /dev".to_owned()),
    }
    put("proc", "/proc", harmless | MsFlags::MS_NODEV, "")?;
    put("sysfs", "/sys", harmless | MsFlags::MS_NODEV, "")?;
    let console = fs::OpenOptions::new().read(true).write(true).open("/dev/console");
    let console = console.step(|| "open /dev/console".to_owned())?;
    for dup in [dup2_stdin(&console), dup2_stdout(&console), dup2_stderr(&console)] {
        dup.step(|| "make the console stdin, stdout and stderr".to_owned())?;
    }
    Ok(())
}

/// Makes the overlay the root. The initial root stays below it, out of everyone's sight, with the agent in it.
pub(super) fn switch_root() -> Result<(), BootFault> {
    let step = || format!("make {NEW_ROOT} the root");
    chdir(NEW_ROOT).step(step)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).step(step)?;
    chroot(".").step(step)?;
    chdir("/").step(step)
}

/// Mounts what programs in the machine expect.
pub(super) fn mount_in_root() -> Result<(), BootFault> {
    let harmless = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    put("proc", "/proc", harmless, "")?;
    put("sysfs", "/sys", harmless | MsFlags::MS_RDONLY, "")?;
    put("cgroup2", cgroups::MOUNT, harmless, "")?;
    make_dev()?;
    put("tmpfs", "/run", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=0755,size=16m")?;
    let root_home = "/root";
    fs::create_dir_all(root_home).step(|| format!("make {root_home}"))?;
    fs::set_permissions(root_home, Permissions::from_mode(0o700)).step(|| format!("close {root_home} to others"))?;
    for folder in ["/tmp", "/var/tmp"] {
        fs::create_dir_all(folder).step(|| format!("make {folder}"))?;
        fs::set_permissions(folder, Permissions::from_mode(0o1777)).step(|| format!("open {folder} to everyone"))?;
    }
    Ok(())
}

/// Mounts a `/dev` with what every program may expect, and nothing else.
pub(crate) fn make_dev() -> Result<(), BootFault> {
    let harmless = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    put("tmpfs", "/dev", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, "mode=0755,size=64k")?;
    put("devpts", "/dev/pts", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620")?;
    put("tmpfs", "/dev/shm", harmless, "mode=1777")?;
    let usual = umask(Mode::empty());
    for (name, major, minor) in DEVICES {
        let path = format!("/dev/{name}");
        mknod(path.as_str(), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(*major, *minor))
            .step(|| format!("make {path}"))?;
    }
    umask(usual);
    for (name, target) in LINKS {
        let path = format!("/dev/{name}");
        symlink(target, &path).step(|| format!("make {path}"))?;
    }
    Ok(())
}

/// Mounts a kernel file system, making the folder if the image lacks it.
fn put(file_system: &str, place: &str, flags: MsFlags, options: &str) -> Result<(), BootFault> {
    fs::create_dir_all(place).step(|| format!("make {place}"))?;
    mount(Some(file_system), place, Some(file_system), flags, Some(options))
        .step(|| format!("mount {file_system} at {place}"))
}
