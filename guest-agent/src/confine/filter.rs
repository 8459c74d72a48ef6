// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The system call filter of user work: what has no use for programs in a sandbox, or is a way to the kernel's rarely
//! walked parts, is refused as not permitted.
//!
//! A list of what is forbidden rather than of what is allowed: agents run whatever programs they like, and a program
//! that meets a missing call breaks in ways that nobody understands. The machine is the wall; this is the fence.

use std::sync::OnceLock;

use nix::{errno::Errno, libc};
use waggle_seccomp::{
    BackendError, BpfProgram, FORBIDDEN, Rules, all_of, any_arguments, any_of, apply_filter, deny, differs, equals,
    is_not_null, masked,
};

/// Compiles the filters, for this process and those that it forks.
///
/// # Errors
/// A rule that the compiler refuses.
pub(crate) fn compile() -> nix::Result<()> {
    programs().map(drop)
}

/// Installs the filter on this thread, for good. Needs `no_new_privs` or root.
///
/// # Errors
/// What the kernel said.
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

/// What is refused as not permitted.
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
    // Limits of other processes, the room's first one among them: its user id is that of the guest's root.
    rules.insert(libc::SYS_prlimit64, all_of(vec![differs(0, 0)?, is_not_null(2)?])?);
    Ok(rules)
}
