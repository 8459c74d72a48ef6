// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The agent's only unsafe code: what neither std nor nix offers behind a safe face.
#![expect(unsafe_code, reason = "system calls without a safe wrapper; each states why it is sound")]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use nix::{
    libc,
    unistd::{ForkResult, fork},
};

/// From the kernel's `include/uapi/linux/vm_sockets.h`; libc lacks them.
const SO_VM_SOCKETS_BUFFER_SIZE: libc::c_int = 0;
const SO_VM_SOCKETS_BUFFER_MAX_SIZE: libc::c_int = 2;

/// Forks. Only for PID 1 before it has started any thread.
///
/// # Errors
/// What the kernel said: EAGAIN, ENOMEM.
pub(crate) fn fork_single_threaded() -> nix::Result<ForkResult> {
    // SAFETY: the caller is PID 1, which never starts a thread, so the child is a whole copy of a process in which no
    // lock is held by another thread.
    unsafe { fork() }
}

/// Sets how much a vsock connection may have in flight towards this side, in bytes.
///
/// # Errors
/// What the kernel said.
pub(crate) fn set_vsock_buffer(socket: BorrowedFd<'_>, bytes: u64) -> io::Result<()> {
    for option in [SO_VM_SOCKETS_BUFFER_MAX_SIZE, SO_VM_SOCKETS_BUFFER_SIZE] {
        let length = libc::socklen_t::try_from(size_of::<u64>()).unwrap_or(8);
        // SAFETY: the pointer and the length describe `bytes`, which outlives the call, and the kernel only reads it.
        let result =
            unsafe { libc::setsockopt(socket.as_raw_fd(), libc::AF_VSOCK, option, (&raw const bytes).cast(), length) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Sets the loopback device up.
///
/// # Errors
/// What the kernel said.
pub(crate) fn set_loopback_up() -> io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: `ifreq` is plain data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"lo") {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or(0);
    // SAFETY: SIOCSIFFLAGS reads an `ifreq`, which `request` is, and it outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
