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
use waggle_seccomp::{
    BackendError, BpfProgram, FORBIDDEN, Rules, all_of, any_arguments, any_of, apply_filter, deny, differs, equals,
    is_not_null, masked,
};

/// Compiles the filters once, for this process and its later children.
///
/// # Errors
/// `EINVAL` if the compiler rejects a rule.
pub(crate) fn compile() -> nix::Result<()> {
    programs().map(drop)
}

/// Installs the filters on this thread. They can't be removed. Needs `no_new_privs` or root.
pub(super) fn install() -> nix::Result<()> {
    for program in programs()? {
        apply_filter(program).map_err(|_fault| Errno::last())?;
    }
    Ok(())
}

fn programs() -> nix::Result<&'static [BpfProgram; 3]> {
    static PROGRAMS: OnceLock<Option<[BpfProgram; 3]>> = OnceLock::new();
    PROGRAMS.get_or_init(|| forbidden().and_then(deny).ok()).as_ref().ok_or(Errno::EINVAL)
}

/// Returns the rules for the system calls that fail with `EPERM`.
fn forbidden() -> Result<Rules, BackendError> {
    let mut rules = any_arguments(FORBIDDEN);
    let vsock = u64::try_from(libc::AF_VSOCK).unwrap_or_default();
    for call in [libc::SYS_socket, libc::SYS_socketpair] {
        rules.insert(call, any_of([equals(0, vsock)?])?);
    }
    let new_user = u64::try_from(libc::CLONE_NEWUSER).unwrap_or_default();
    for call in [libc::SYS_unshare, libc::SYS_clone] {
        rules.insert(call, any_of([masked(0, new_user, new_user)?])?);
    }
    // User processes must not change the limits of other processes. A command of root, for example, has the same user
    // id as the sandbox's init process.
    rules.insert(libc::SYS_prlimit64, all_of(vec![differs(0, 0)?, is_not_null(2)?])?);
    Ok(rules)
}
