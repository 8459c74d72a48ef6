// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The system call filter of user processes. System calls that programs in a sandbox do not need, or that expose rarely
//! used parts of the kernel, fail with `EPERM`.
//!
//! The filter lists forbidden system calls, not allowed ones. Agents run arbitrary programs, and a program that is
//! denied a system call fails in confusing ways. The machine is the isolation boundary; the filter is an additional
//! defence inside the guest.

use std::sync::OnceLock;

use nix::{errno::Errno, libc};
use waggle_protocol::request::User;
use waggle_seccomp::{
    BackendError, BpfProgram, FORBIDDEN, Rules, all_of, any_arguments, any_of, apply_filter, deny, differs, equals,
    is_not_null, masked,
};

/// Compiles the filters once, for this process and its later children.
///
/// # Errors
/// `EINVAL` if the compiler rejects a rule.
pub(crate) fn compile() -> nix::Result<()> {
    programs(User::Sandbox)?;
    programs(User::Root).map(drop)
}

/// Installs the filters on this thread. They can't be removed. Needs `no_new_privs` or root.
pub(super) fn install(user: User) -> nix::Result<()> {
    for program in programs(user)? {
        apply_filter(program).map_err(|_fault| Errno::last())?;
    }
    Ok(())
}

fn programs(user: User) -> nix::Result<&'static [BpfProgram; 3]> {
    static SANDBOX: OnceLock<Option<[BpfProgram; 3]>> = OnceLock::new();
    static ROOT: OnceLock<Option<[BpfProgram; 3]>> = OnceLock::new();
    let programs = match user {
        User::Sandbox => &SANDBOX,
        User::Root => &ROOT,
    };
    programs.get_or_init(|| forbidden(user).and_then(deny).ok()).as_ref().ok_or(Errno::EINVAL)
}

/// Returns the rules for the system calls that fail with `EPERM`.
fn forbidden(user: User) -> Result<Rules, BackendError> {
    let mut rules = any_arguments(FORBIDDEN);
    let vsock = u64::try_from(libc::AF_VSOCK).unwrap_or_default();
    for call in [libc::SYS_socket, libc::SYS_socketpair] {
        rules.insert(call, any_of([equals(0, vsock)?])?);
    }
    let new_user = u64::try_from(libc::CLONE_NEWUSER).unwrap_or_default();
    for call in [libc::SYS_unshare, libc::SYS_clone] {
        rules.insert(call, any_of([masked(0, new_user, new_user)?])?);
    }
    // A command of root has the same user id as the sandbox's init process, whose limits it must not change. The kernel
    // lets the sandbox user change the limits of its own processes only.
    if user == User::Root {
        rules.insert(libc::SYS_prlimit64, all_of(vec![differs(0, 0)?, is_not_null(2)?])?);
    }
    Ok(rules)
}
