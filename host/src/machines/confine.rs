// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Confines the processes that a hostile guest can attack first: libkrun and QEMU.
//!
//! ```text
//!  runner    a user namespace, in which it has privileges over its own children only
//!  children  in addition: pid, mount, ipc, net, uts and cgroup namespaces, one set each; a root with only the files
//!            that they need, all read-only but the scratch disk; no capabilities; no new privileges; Landlock;
//!            resource limits; a system call filter
//! ```
//!
//! All of this works for an ordinary user. If the host denies namespaces to users, the other restrictions still apply.
//! The server detects and logs this once at its start. If namespaces fail later, the machine does not start. Only the
//! operator's control group limits processor time.

mod check;
mod files;
mod filter;
mod limits;
mod root;

use std::{fs, io};

use nix::sched::{CloneFlags, unshare};
use rustix::{
    process::{DumpableBehavior, getgid, getuid, set_dumpable_behavior},
    thread::set_no_new_privs,
};
use serde::{Deserialize, Serialize};

pub(super) use self::{
    check::{check, missing},
    files::{restricts_connections, restricts_files},
    filter::Calls,
    limits::Limits,
    root::{OWN_DESCRIPTORS, RootFiles},
};
use super::sys;

/// The points by which the kernel prefers the processes of machines when it kills processes because memory ran out.
/// 1000 points are all memory of the host, so it kills the server only if that uses half of the memory.
const OOM_POINTS: i32 = 500;
const OOM_POINTS_MAX: i32 = 1000;
/// The file with the points of this process.
const OOM_FILE: &str = "/proc/self/oom_score_adj";
/// Highest possible number of a capability: the kernel's masks have 64 bits.
const CAPABILITY_MAX: u32 = 63;

/// Whether machines have their own namespaces. [`check`] decides this when the server starts.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) enum Namespaces {
    /// Each process of a machine has its own namespaces.
    Own,
    /// The host allows no namespaces, so the processes share those of the server.
    Shared,
}

/// Makes the kernel prefer this process and its children to the server when memory runs out.
///
/// Before [`hide_memory`], after which an ordinary user cannot write the file.
///
/// # Errors
/// The file cannot be read or written.
pub(super) fn prefer_to_kill() -> io::Result<()> {
    let points: i32 = fs::read_to_string(OOM_FILE)?.trim().parse().map_err(io::Error::other)?;
    fs::write(OOM_FILE, (points + OOM_POINTS).min(OOM_POINTS_MAX).to_string())
}

/// Keeps other processes of the same user from reading and changing the memory of this process, and from tracing it.
/// Executing a program ends this.
///
/// # Errors
/// The kernel's error.
pub fn hide_memory() -> io::Result<()> {
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Enters a new user namespace as the same user. In this namespace, children can get their own namespaces.
///
/// Only for a single-threaded process.
///
/// # Errors
/// The kernel's error.
pub(super) fn enter_user_namespace() -> io::Result<()> {
    let (user, group) = (getuid().as_raw(), getgid().as_raw());
    unshare(CloneFlags::CLONE_NEWUSER)?;
    // The kernel requires this before an ordinary user may write `gid_map`. The user's groups do not change.
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
    fs::write("/proc/self/gid_map", format!("{group} {group} 1"))
}

impl Namespaces {
    /// Flags that create a child in its own pid namespace, if machines have namespaces. In its namespace, the child
    /// sees only its descendants, and the kernel kills all descendants when the child ends.
    pub(super) fn clone_flags(self) -> CloneFlags {
        match self {
            Self::Own => CloneFlags::CLONE_NEWPID,
            Self::Shared => CloneFlags::empty(),
        }
    }
}

/// The restrictions on one child.
#[derive(Clone, Debug)]
pub(super) struct Confinement {
    pub(super) namespaces: Namespaces,
    pub(super) files: RootFiles,
    pub(super) calls: Calls,
    pub(super) limits: Limits,
}

impl Confinement {
    /// Applies the restrictions to this process permanently. The working folder stays the same.
    ///
    /// # Errors
    /// The step that failed and the kernel's error.
    pub(super) fn apply(&self) -> io::Result<()> {
        let step =
            |step: &'static str| move |fault: io::Error| io::Error::new(fault.kind(), format!("{step}: {fault}"));
        if self.namespaces == Namespaces::Own {
            let flags = CloneFlags::CLONE_NEWNS
                | CloneFlags::CLONE_NEWIPC
                | CloneFlags::CLONE_NEWNET
                | CloneFlags::CLONE_NEWUTS
                | CloneFlags::CLONE_NEWCGROUP;
            unshare(flags).map_err(|errno| step("create namespaces")(errno.into()))?;
            self.files.enter_root().map_err(step("enter the confined root"))?;
        }
        set_no_new_privs(true).map_err(|errno| step("set no_new_privs")(errno.into()))?;
        drop_capabilities().map_err(step("drop capabilities"))?;
        files::restrict(&self.files).map_err(step("restrict the files"))?;
        self.limits.set(self.namespaces).map_err(step("set resource limits"))?;
        self.calls.install(self.namespaces).map_err(step("install the system call filter"))
    }
}

fn drop_capabilities() -> io::Result<()> {
    for number in 0..=CAPABILITY_MAX {
        // Has no effect if the kernel does not know the capability, or if the process lacks the right to drop it.
        sys::drop_from_bounding_set(number);
    }
    sys::drop_all_capabilities()
}
