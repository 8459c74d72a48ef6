// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Drops the privileges of a process between fork and exec.
//!
//! The order is: resource limits, the capability bounding set, the user, `no_new_privs`, the system call filter. The
//! operator can switch off three of these defences: the capability limits, `no_new_privs` and the filter. Tests do so
//! to prove which attack each defence stops.

pub(crate) mod filter;

use caps::{CapSet, Capability, CapsHashSet};
use nix::{
    sys::{
        prctl,
        resource::{RLIM_INFINITY, Resource, setrlimit},
        sysinfo::sysinfo,
    },
    unistd::{Gid, Uid, setgroups, setresgid, setresuid},
};
use waggle_protocol::{boot::Relaxed, request::User};

use crate::sandbox_user::{Groups, SANDBOX_ID};

/// Capabilities of root in the sandbox. Package managers need these to unpack files, to change owners and to change
/// users. All others are dropped, including `SYS_ADMIN`, `SYS_PTRACE`, `SYS_MODULE`, `SYS_BOOT`, `SYS_RAWIO` and
/// `MKNOD` (a device node would give access to the disks).
const ROOT_CAPABILITIES: &[Capability] = &[
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_KILL,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
    Capability::CAP_SETPCAP,
    Capability::CAP_SETFCAP,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_SYS_CHROOT,
    Capability::CAP_AUDIT_WRITE,
];

/// Maximum number of open files that a process may have without raising its limit. Programs that close all descriptors
/// up to the limit remain fast.
const OPEN_FILES_SOFT: u64 = 65_536;

/// Maximum number of open files that a process may raise its limit to. The kernel allows no higher number.
const OPEN_FILES_HARD: u64 = 1_048_576;

/// Memory of an open file in bytes, about that of a socket. The memory limits of calls include it.
const OPEN_FILE_BYTES: u64 = 1024;

/// The enabled defences.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Defences {
    /// Separate namespaces for the sandbox.
    pub namespaces: bool,
    /// Dropping all capabilities except `ROOT_CAPABILITIES`.
    pub capabilities: bool,
    /// `no_new_privs`: set-user-id programs gain no privileges.
    pub no_new_privileges: bool,
    pub filter: bool,
}

impl Defences {
    pub const ALL: Self = Self { namespaces: true, capabilities: true, no_new_privileges: true, filter: true };

    /// Returns all defences that the operator has not switched off.
    #[must_use]
    pub fn all_but(relaxed: &Relaxed) -> Self {
        Self {
            namespaces: !relaxed.namespaces,
            capabilities: !relaxed.capabilities,
            no_new_privileges: !relaxed.no_new_privileges,
            // The filter needs `no_new_privs`: without this flag, installing a filter requires `CAP_SYS_ADMIN`.
            filter: !relaxed.filter && !relaxed.no_new_privileges,
        }
    }
}

/// Returns the maximum number of open files of a process in a machine: one for each KiB of memory.
pub(crate) fn open_files_max() -> u64 {
    let memory_bytes = sysinfo().map_or(0, |info| info.ram_total());
    (memory_bytes / OPEN_FILE_BYTES).clamp(OPEN_FILES_SOFT, OPEN_FILES_HARD)
}

/// Switches this process to `user` and drops the privileges that user processes must not have. The process must be root
/// and have only one thread. `groups` are those of the sandbox user, `open_files_max` is the limit that the process may
/// raise its own limit to.
///
/// # Errors
/// The kernel's error; the process must then exit.
pub(crate) fn confine(user: User, groups: &Groups, defences: Defences, open_files_max: u64) -> nix::Result<()> {
    setrlimit(Resource::RLIMIT_NOFILE, open_files_max.min(OPEN_FILES_SOFT), open_files_max)?;
    // As on any Linux, a program has no core file unless someone asks for it with `ulimit -c`.
    setrlimit(Resource::RLIMIT_CORE, 0, RLIM_INFINITY)?;
    if defences.capabilities {
        keep_capabilities(ROOT_CAPABILITIES)?;
    }
    match user {
        User::Sandbox => {
            let (uid, gid) = (Uid::from_raw(SANDBOX_ID), Gid::from_raw(groups.primary));
            let all: Vec<_> = [gid].into_iter().chain(groups.others.iter().copied().map(Gid::from_raw)).collect();
            setgroups(&all)?;
            setresgid(gid, gid, gid)?;
            setresuid(uid, uid, uid)?;
        }
        User::Root => setgroups(&[Gid::from_raw(0)])?,
    }
    if defences.no_new_privileges {
        prctl::set_no_new_privs()?;
    }
    if defences.filter {
        filter::install(user)?;
    }
    Ok(())
}

fn keep_capabilities(kept: &[Capability]) -> nix::Result<()> {
    let kept: CapsHashSet = kept.iter().copied().collect();
    let refused = |_fault| nix::errno::Errno::EPERM;
    for dropped in caps::runtime::thread_all_supported().difference(&kept) {
        caps::drop(None, CapSet::Bounding, *dropped).map_err(refused)?;
    }
    // Clearing the inheritable capabilities also clears the ambient ones.
    caps::clear(None, CapSet::Inheritable).map_err(refused)?;
    caps::set(None, CapSet::Effective, &kept).map_err(refused)?;
    caps::set(None, CapSet::Permitted, &kept).map_err(refused)
}
