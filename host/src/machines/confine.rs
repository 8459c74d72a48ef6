// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The walls around the processes that a hostile guest reaches first: libkrun's, QEMU's, `vhost-device-vsock`'s.
//!
//! ```text
//!  runner    a user namespace, in which it has power over nothing but its own children
//!  children  besides: pid, mount, ipc, net, uts and cgroup namespaces, each its own; a root that holds the files that
//!            they need; no capabilities; no new ones; limits; a system call filter
//! ```
//!
//! All of it works for an ordinary user. Where the host gives users no namespaces, the rest still holds. The server
//! finds that out at its start and says so; a machine never decides it. All this does not bound memory or processor
//! time: the operator's control group does.

mod check;
mod filter;
mod tree;

use std::{fs, io};

use nix::sched::{CloneFlags, unshare};
use rustix::{
    process::{Resource, Rlimit, getgid, getuid, setrlimit},
    thread::set_no_new_privs,
};
use serde::{Deserialize, Serialize};

pub(super) use self::{
    check::{check, missing},
    filter::Calls,
    tree::Files,
};
use super::sys;

/// Open files of one program: a machine takes about 60.
const OPEN_FILES_MAX: u64 = 1024;
/// Last number that a capability may have, as the kernel's masks have 64 bits.
const CAPABILITY_MAX: u32 = 63;

/// Whether the kernel gives this user namespaces, as [`check`] found at the server's start.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) enum Namespaces {
    /// It does.
    Own,
    /// It does not: the others' are shared.
    Shared,
}

/// Enters a user namespace, as the user that this is, so that the children can be given namespaces of their own.
///
/// Only for a single-threaded process.
///
/// # Errors
/// What the kernel said.
pub(super) fn enter_user_namespace() -> io::Result<()> {
    let (user, group) = (getuid().as_raw(), getgid().as_raw());
    unshare(CloneFlags::CLONE_NEWUSER)?;
    // The groups that this user is in stay its own; none can be added.
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
    fs::write("/proc/self/gid_map", format!("{group} {group} 1"))
}

impl Namespaces {
    /// Those that a child is born into: it is the first process of a pid namespace, so it sees no other, and when it
    /// ends, so does whatever it started.
    pub(super) fn at_birth(self) -> CloneFlags {
        match self {
            Self::Own => CloneFlags::CLONE_NEWPID,
            Self::Shared => CloneFlags::empty(),
        }
    }
}

/// What one child may have.
#[derive(Clone, Debug)]
pub(super) struct Walls {
    /// Whether it gets namespaces.
    pub(super) namespaces: Namespaces,
    /// What it finds in its root.
    pub(super) files: Files,
    /// What it may ask of the kernel.
    pub(super) calls: Calls,
}

impl Walls {
    /// Puts them up around this process, for good; the working folder stays.
    ///
    /// # Errors
    /// The step that failed, with the kernel's reason.
    pub(super) fn put_up(&self) -> io::Result<()> {
        let step =
            |step: &'static str| move |fault: io::Error| io::Error::new(fault.kind(), format!("{step}: {fault}"));
        if self.namespaces == Namespaces::Own {
            let flags = CloneFlags::CLONE_NEWNS
                | CloneFlags::CLONE_NEWIPC
                | CloneFlags::CLONE_NEWNET
                | CloneFlags::CLONE_NEWUTS
                | CloneFlags::CLONE_NEWCGROUP;
            unshare(flags).map_err(|errno| step("make namespaces")(errno.into()))?;
            self.files.become_root().map_err(step("make a root"))?;
        }
        set_no_new_privs(true).map_err(|errno| step("give up new privileges")(errno.into()))?;
        drop_capabilities().map_err(step("drop capabilities"))?;
        limit().map_err(step("set limits"))?;
        self.calls.install(self.namespaces).map_err(step("install the system call filter"))
    }
}

fn drop_capabilities() -> io::Result<()> {
    for number in 0..=CAPABILITY_MAX {
        // Fails where there is no such capability, and where there is none to lose.
        sys::drop_from_bounding_set(number);
    }
    sys::drop_all_capabilities()
}

fn limit() -> io::Result<()> {
    let both = |limit| Rlimit { current: Some(limit), maximum: Some(limit) };
    // A guest that crashes its machine would have its memory written to the host's disk.
    setrlimit(Resource::Core, both(0))?;
    setrlimit(Resource::Nofile, both(OPEN_FILES_MAX))?;
    // What is locked into memory cannot be taken back from a guest.
    setrlimit(Resource::Memlock, both(0))?;
    setrlimit(Resource::Msgqueue, both(0))?;
    Ok(())
}
