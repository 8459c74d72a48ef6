// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Makes the room's namespaces (pid, mount, cgroup, ipc, uts) and what is mounted in them.

use std::{fs, os::fd::AsFd};

use nix::{
    fcntl::{OFlag, open},
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::stat::Mode,
    unistd::{ForkResult, fchdir, pivot_root},
};

use crate::{
    boot::{BootFault, Step, places},
    cgroups,
    confine::Defences,
    sys,
};

/// Leaves the machine's namespaces and forks: the child is the first process of the new ones.
pub(super) fn enter_and_fork(defences: Defences) -> Result<ForkResult, BootFault> {
    cgroups::join_room().step(|| "join the room's cgroup".to_owned())?;
    if defences.namespaces {
        let new = CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWCGROUP;
        unshare(new).step(|| "make the room's namespaces".to_owned())?;
    }
    let forked = sys::fork_single_threaded().step(|| "fork the room".to_owned())?;
    if forked.is_child() {
        // The first process is not bounded by what bounds user work, or it could not start the command that ends it.
        cgroups::leave_room().step(|| "leave the room's control group".to_owned())?;
        if defences.namespaces {
            mount_room()?;
        }
    }
    Ok(forked)
}

/// Makes the machine's root the room's, with nothing below it, and kernel file systems that show the room alone.
fn mount_room() -> Result<(), BootFault> {
    let step = || "make the room's mounts private".to_owned();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).step(step)?;
    leave_initial_root().step(|| "leave the initial root behind".to_owned())?;
    let harmless = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    umount2("/proc", MntFlags::MNT_DETACH).step(|| "unmount the machine's /proc".to_owned())?;
    mount(Some("proc"), "/proc", Some("proc"), harmless, None::<&str>).step(|| "mount /proc".to_owned())?;
    umount2("/sys", MntFlags::MNT_DETACH).step(|| "unmount the machine's /sys".to_owned())?;
    let read_only = harmless | MsFlags::MS_RDONLY;
    mount(Some("sysfs"), "/sys", Some("sysfs"), read_only, None::<&str>).step(|| "mount /sys".to_owned())?;
    // A /dev of its own: the agent opens things in the machine's, which nobody here may change.
    umount2("/dev", MntFlags::MNT_DETACH).step(|| "unmount the machine's /dev".to_owned())?;
    places::make_dev()?;
    // Shared memory that nobody is attached to would stay, and stay charged, for ever.
    fs::write("/proc/sys/kernel/shm_rmid_forced", "1").step(|| "bound shared memory".to_owned())?;
    mount(Some("cgroup2"), cgroups::MOUNT, Some("cgroup2"), read_only, None::<&str>)
        .step(|| format!("mount {}", cgroups::MOUNT))?;
    protect_proc()
}

/// Binds the root over itself and pivots onto it: the root of the room has no mount below it to climb down to.
fn leave_initial_root() -> nix::Result<()> {
    mount(Some("/"), "/", None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
    // The bind lies over the root that this process still stands in; a fresh look at "/.." would not see it.
    let root = open("/..", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    fchdir(root.as_fd())?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)
}

/// What the room's root must not write, as its user id would let it.
fn protect_proc() -> Result<(), BootFault> {
    for path in ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/1"] {
        if fs::metadata(path).is_err() {
            continue;
        }
        let step = || format!("make {path} read-only");
        mount(Some(path), path, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>).step(step)?;
        let again = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        let flags = again | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
        mount(None::<&str>, path, None::<&str>, flags, None::<&str>).step(step)?;
    }
    Ok(())
}
