// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The operations of `seccomp(2)` on a filter with a listener: install the filter, receive the calls that wait for the
//! listener's answer, refuse them. No function lets a call continue.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use nix::{errno::Errno, libc};
use waggle_seccomp::sock_filter;

use super::own;

/// A system call that waits for the listener's answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WaitingCall {
    id: u64,
    /// The thread that made the call, in the pid namespace of this process; 0 if the thread is not visible there.
    pub(crate) thread: u32,
    pub(crate) number: libc::c_long,
}

/// The kernel's `struct sock_fprog`. libc's has the same fields, but a pointer to libc's own type of instructions.
#[repr(C)]
struct Program {
    length: libc::c_ushort,
    steps: *const sock_filter,
}

/// Installs a filter on this thread, and returns the filter's listener. Needs `no_new_privs` or root.
pub(crate) fn install_with_listener(steps: &[sock_filter]) -> io::Result<OwnedFd> {
    let length = libc::c_ushort::try_from(steps.len()).map_err(io::Error::other)?;
    let program = Program { length, steps: steps.as_ptr() };
    let (operation, flags) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER);
    // SAFETY: `program` has the layout of `sock_fprog` and describes `steps`. Both outlive the call, which only reads
    // them.
    let listener = unsafe { libc::syscall(libc::SYS_seccomp, operation, flags, &raw const program) };
    Ok(own(RawFd::try_from(Errno::result(listener)?).map_err(io::Error::other)?))
}

/// Receives the next waiting call. Blocks if no call waits, so the listener must be readable. `None` if the call has
/// ended meanwhile, because its thread was killed or got a signal.
pub(crate) fn receive(listener: BorrowedFd<'_>) -> nix::Result<Option<WaitingCall>> {
    // SAFETY: `seccomp_notif` is plain data. The kernel demands zeroes.
    let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the operation writes a `seccomp_notif`. `call` is one and outlives the call.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call) };
    match Errno::result(result) {
        Ok(_) => Ok(Some(WaitingCall { id: call.id, thread: call.pid, number: call.data.nr.into() })),
        Err(Errno::ENOENT | Errno::EINTR) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Returns whether a received call still waits. If it does, its thread number has belonged to the same thread so far.
pub(crate) fn is_waiting(listener: BorrowedFd<'_>, call: WaitingCall) -> bool {
    // SAFETY: the operation reads one number of 64 bits. `call` outlives the call.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw const call.id) };
    result == 0
}

/// Makes a received call fail with `EPERM`. Does nothing if the call has ended meanwhile.
pub(crate) fn refuse(listener: BorrowedFd<'_>, call: WaitingCall) -> nix::Result<()> {
    let answer = libc::seccomp_notif_resp { id: call.id, val: 0, error: -libc::EPERM, flags: 0 };
    // SAFETY: the operation reads a `seccomp_notif_resp`. `answer` is one and outlives the call.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const answer) };
    match Errno::result(result) {
        Ok(_) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}
