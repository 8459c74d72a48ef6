// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Creates the sandbox's namespaces (pid, mount, cgroup, ipc, uts) and mounts its file systems.

use std::{fs, os::fd::AsFd};

use nix::{
    fcntl::{OFlag, open},
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::{stat::Mode, sysinfo::sysinfo},
    unistd::{ForkResult, fchdir, pivot_root},
};

use crate::{
    cgroups,
    confine::Defences,
    mounts::{HARMLESS, make_dev, mount_kernel_fs},
    step::{StepFault, WithStep},
    sys,
};

/// The System V segments have at most the machine's memory divided by this number. Forgotten segments use up memory
/// until the machine ends; together with a full `/dev/shm`, which gets half of the memory, they must leave enough for
/// calls.
const SHARED_MEMORY_DIVISOR: u64 = 4;

/// The unit of the kernel's limit, in bytes.
const PAGE_BYTES: u64 = 4096;

/// Creates new namespaces, and forks a child that is their init process.
pub(super) fn enter_and_fork(defences: Defences) -> Result<ForkResult, StepFault> {
    cgroups::join_sandbox().step(|| "join the sandbox's cgroup".to_owned())?;
    if defences.namespaces {
        let new = CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWCGROUP;
        unshare(new).step(|| "create the sandbox's namespaces".to_owned())?;
    }
    let forked = sys::fork_single_threaded().step(|| "fork the sandbox's init process".to_owned())?;
    if forked.is_child() {
        // The limits of user processes must not apply to init. Otherwise, init might be unable to start a command that
        // kills the processes.
        cgroups::join_init().step(|| "leave the sandbox's cgroup".to_owned())?;
        if defences.namespaces {
            mount_sandbox(defences)?;
        }
    }
    Ok(forked)
}

/// Gives the sandbox the machine's root, and kernel file systems that show only the sandbox.
fn mount_sandbox(defences: Defences) -> Result<(), StepFault> {
    let step = || "make the sandbox's mounts private".to_owned();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).step(step)?;
    leave_initial_root().step(|| "leave the initial root".to_owned())?;
    if defences.capabilities && defences.no_new_privileges {
        ignore_file_privileges().step(|| "ignore the privileges of files".to_owned())?;
    }
    // The sandbox gets a separate /dev, because the agent opens files in the machine's /dev.
    for folder in ["/proc", "/sys", "/dev"] {
        umount2(folder, MntFlags::MNT_DETACH).step(|| format!("unmount the machine's {folder}"))?;
    }
    let read_only = HARMLESS | MsFlags::MS_RDONLY;
    mount_kernel_fs("proc", "/proc", HARMLESS, "")?;
    mount_kernel_fs("sysfs", "/sys", read_only, "")?;
    make_dev()?;
    // Segments stay allocated after their last process has exited.
    let pages = shared_memory_pages().step(|| "read the size of the memory".to_owned())?;
    fs::write("/proc/sys/kernel/shmall", pages.to_string()).step(|| "limit shared memory".to_owned())?;
    mount_kernel_fs("cgroup2", cgroups::MOUNT, read_only, "")?;
    protect_proc()
}

/// Remounts the root so that the kernel ignores set-user-id bits and capabilities of files. Neither has an effect under
/// `no_new_privs`, but the kernel refuses to execute a file with capabilities that the bounding set lacks.
fn ignore_file_privileges() -> nix::Result<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
}

/// Returns the maximum of all System V segments together, in pages.
fn shared_memory_pages() -> nix::Result<u64> {
    Ok(sysinfo()?.ram_total() / SHARED_MEMORY_DIVISOR / PAGE_BYTES)
}

/// Bind-mounts the root over itself and pivots to the bind mount, so that processes can't escape to a mount that the
/// sandbox's root covers.
fn leave_initial_root() -> nix::Result<()> {
    mount(Some("/"), "/", None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
    // This process's root is still the covered mount; "/.." resolves to the bind mount.
    let root = open("/..", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    fchdir(root.as_fd())?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)
}

/// Makes files in `/proc` read-only. Otherwise, root in the sandbox could write them, because its user id is 0.
fn protect_proc() -> Result<(), StepFault> {
    for path in ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/1"] {
        if fs::metadata(path).is_err() {
            continue;
        }
        let step = || format!("make {path} read-only");
        mount(Some(path), path, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>).step(step)?;
        let again = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        let flags = again | HARMLESS;
        mount(None::<&str>, path, None::<&str>, flags, None::<&str>).step(step)?;
    }
    Ok(())
}
