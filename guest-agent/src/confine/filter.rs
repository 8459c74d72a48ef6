// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The system call filter of user processes. System calls that programs in a sandbox do not need, or that expose rarely
//! used parts of the kernel, fail with `EPERM`.
//!
//! The filter lists forbidden system calls, not allowed ones. Agents run arbitrary programs, and a program that is
//! denied a system call fails in confusing ways. The machine is the isolation boundary; the filter is an additional
//! defence inside the guest.
//!
//! For that reason, the agent counts the refusals of some calls. The sandbox's init process has one more filter, which
//! all commands inherit. This filter passes the counted calls to a listener, the agent, which lets them fail with
//! `EPERM` as well. If the listener is closed, the kernel lets them fail with `ENOSYS`. An error of a filter takes
//! precedence over a listener, so the filters that commands install then leave the counted calls out.

use std::{os::fd::OwnedFd, sync::OnceLock};

use nix::{errno::Errno, libc};
use waggle_protocol::{REFUSED_MAX, request::User};
use waggle_seccomp::{
    BackendError, BpfProgram, FORBIDDEN, Rules, all_of, any_arguments, any_of, apply_filter, deny, differs, equals,
    is_not_null, masked, notify,
};

use crate::{console::report, sys};

/// The system calls whose refusals are counted, and their names. Sandboxes, container tools and debugging tools fail
/// without them. Programs that merely look whether a call exists, as many do for `io_uring`, would only confuse.
pub(crate) const COUNTED: [(libc::c_long, &str); 16] = [
    (libc::SYS_unshare, "unshare"),
    (libc::SYS_clone, "clone"),
    (libc::SYS_setns, "setns"),
    (libc::SYS_mount, "mount"),
    (libc::SYS_umount2, "umount2"),
    (libc::SYS_pivot_root, "pivot_root"),
    (libc::SYS_fsopen, "fsopen"),
    (libc::SYS_fsmount, "fsmount"),
    (libc::SYS_open_tree, "open_tree"),
    (libc::SYS_move_mount, "move_mount"),
    (libc::SYS_mount_setattr, "mount_setattr"),
    (libc::SYS_bpf, "bpf"),
    (libc::SYS_perf_event_open, "perf_event_open"),
    (libc::SYS_add_key, "add_key"),
    (libc::SYS_request_key, "request_key"),
    (libc::SYS_keyctl, "keyctl"),
];

// The agent can report all of them.
const _: () = assert!(COUNTED.len() <= REFUSED_MAX, "more counted system calls than a reply can hold");

/// The filters that [`install`] installs.
static PROGRAMS: OnceLock<Programs> = OnceLock::new();

/// The filters of the commands of each user.
#[derive(Debug)]
struct Programs {
    sandbox: [BpfProgram; 3],
    root: [BpfProgram; 3],
}

/// Prepares the filters for the later children of this process, and returns the listener for the counted calls. From
/// now on, these calls of this process wait for the listener, too. Without a listener (`None`), nothing is counted.
///
/// # Errors
/// `EINVAL` if the compiler rejects a rule.
pub(crate) fn prepare() -> nix::Result<Option<OwnedFd>> {
    let invalid = |_fault| Errno::EINVAL;
    // These calls are forbidden to both users.
    let mut counted = forbidden(User::Sandbox).map_err(invalid)?;
    counted.retain(|call, _| is_counted(*call));
    let listener = match sys::seccomp::install_with_listener(&notify(counted).map_err(invalid)?) {
        Ok(listener) => Some(listener),
        Err(source) => {
            report(&format!("refused system calls are not counted: {source}"));
            None
        }
    };
    let programs = |user| deny(if listener.is_some() { not_counted(user)? } else { forbidden(user)? });
    let programs =
        Programs { sandbox: programs(User::Sandbox).map_err(invalid)?, root: programs(User::Root).map_err(invalid)? };
    PROGRAMS.set(programs).map_err(|_set_before| Errno::EALREADY)?;
    Ok(listener)
}

/// Installs the prepared filters on this thread, or else filters for all forbidden calls. They can't be removed. Needs
/// `no_new_privs` or root.
pub(super) fn install(user: User) -> nix::Result<()> {
    let complete;
    let programs = match (PROGRAMS.get(), user) {
        (Some(prepared), User::Sandbox) => &prepared.sandbox,
        (Some(prepared), User::Root) => &prepared.root,
        // A file worker is a new program below the agent, and so without init's filter.
        (None, user) => {
            complete = forbidden(user).and_then(deny).map_err(|_fault| Errno::EINVAL)?;
            &complete
        }
    };
    for program in programs {
        apply_filter(program).map_err(|_fault| Errno::last())?;
    }
    Ok(())
}

fn is_counted(call: libc::c_long) -> bool {
    COUNTED.iter().any(|(counted, _)| *counted == call)
}

/// Returns the rules for the calls that the listener does not refuse.
fn not_counted(user: User) -> Result<Rules, BackendError> {
    let mut rules = forbidden(user)?;
    rules.retain(|call, _| !is_counted(*call));
    // Of two listeners, the kernel asks the one whose filter was installed later. A program's own listener could
    // therefore let the counted calls continue. The kernel rejects a second listener only while the first one is open.
    let own_listener = masked(1, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER)?;
    rules.insert(libc::SYS_seccomp, any_of([own_listener])?);
    Ok(rules)
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

// QEMU's user-mode emulation, which runs the tests for aarch64, has no filters.
#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use nix::{
        mount::{MsFlags, mount},
        sys::prctl,
    };

    use super::*;

    #[test]
    fn program_without_prepared_filters_refuses_counted_calls_as_well() {
        // Filters apply to the thread that installs them, so the other tests are not affected.
        let refused = std::thread::spawn(|| {
            prctl::set_no_new_privs().unwrap();
            install(User::Sandbox).unwrap();
            let flags = MsFlags::MS_BIND;
            mount(Some("/nowhere"), "/nowhere", None::<&str>, flags, None::<&str>)
        });
        assert_eq!(refused.join().unwrap(), Err(Errno::EPERM));
    }
}
