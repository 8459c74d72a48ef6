// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The agent's only unsafe code: system calls without a safe wrapper in std or nix.
#![expect(unsafe_code, reason = "system calls without a safe wrapper; each states why it is sound")]

pub(crate) mod bpf;
pub(crate) mod seccomp;

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use nix::{
    errno::Errno,
    libc,
    sys::{
        signal::{SigHandler, Signal, signal},
        wait::WaitPidFlag,
    },
    unistd::{ForkResult, Pid, fork},
};
use tokio::io::{Interest, unix::AsyncFd};
use waggle_protocol::handshake::SEED_BYTES;

/// From the kernel's `include/uapi/linux/vm_sockets.h`; libc lacks these constants.
const SO_VM_SOCKETS_BUFFER_SIZE: libc::c_int = 0;
const SO_VM_SOCKETS_BUFFER_MAX_SIZE: libc::c_int = 2;

/// From the kernel's `include/uapi/linux/sched.h`; libc's constant overflows its own type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// From the kernel's `include/uapi/linux/sockios.h`. libc's constant fits glibc's `ioctl`, whose type differs from
/// musl's.
const SIOCSIFFLAGS: libc::Ioctl = 0x8914;

/// From the kernel's `include/uapi/linux/random.h`, with the type that musl's `ioctl` expects.
const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
const RNDRESEEDCRNG: libc::Ioctl = 0x5207;

/// Forks. The calling process must not have started a thread.
pub(crate) fn fork_single_threaded() -> nix::Result<ForkResult> {
    // SAFETY: the callers (PID 1, the serving child before its runtime, the sandbox's init process) have no second
    // thread. No other thread can therefore hold a lock that the child would inherit.
    unsafe { fork() }
}

/// Forks a child that is in another control group from its start. The calling process must not have started a thread.
/// If the child moved itself instead, the move would wait for all running forks in the machine, which never end during
/// a fork bomb.
pub(crate) fn fork_into_cgroup(cgroup: BorrowedFd<'_>) -> nix::Result<ForkResult> {
    // SAFETY: `clone_args` is plain data, for which all zeroes is a valid value.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = CLONE_INTO_CGROUP;
    arguments.exit_signal = u64::try_from(libc::SIGCHLD).unwrap_or_default();
    arguments.cgroup = u64::try_from(cgroup.as_raw_fd()).unwrap_or_default();
    // SAFETY: the pointer and the size describe `arguments`, which outlives the call. The flags request no shared
    // memory, so the call behaves like `fork`. The only caller, the sandbox's init process, has no second thread.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) };
    Ok(match libc::pid_t::try_from(Errno::result(pid)?).map_err(|_no_pid| Errno::EOVERFLOW)? {
        0 => ForkResult::Child,
        child => ForkResult::Parent { child: Pid::from_raw(child) },
    })
}

/// Takes ownership of a descriptor that the kernel has just created, for example by `SCM_RIGHTS`, `bpf` or `seccomp`,
/// or that the parent has passed to this program.
pub(crate) fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the callers pass descriptors from `recvmsg`, `bpf` or `seccomp`, or one from the arguments of this
    // program. These have no other owner.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Registers a descriptor with the runtime. Fails for files that do not support polling.
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` refers to one open descriptor during its lifetime, and `AsyncFd` deregisters the descriptor
    // before returning or dropping it.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}

/// Registers a descriptor with the runtime until the returned value is dropped.
pub(crate) fn watch_borrowed(fd: BorrowedFd<'_>, interest: Interest) -> io::Result<AsyncFd<BorrowedFd<'_>>> {
    // SAFETY: a `BorrowedFd` refers to one open descriptor during its lifetime, and `AsyncFd` deregisters the
    // descriptor before returning or dropping it.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}

/// Waits for any child, and returns its process id and raw wait status. nix's `waitpid` would reap a child killed by a
/// real-time signal, but then return an error.
pub(crate) fn wait_raw(flags: WaitPidFlag) -> nix::Result<Option<(Pid, libc::c_int)>> {
    let mut status = 0;
    // SAFETY: `status` outlives the call, which writes one int to it.
    let pid = Errno::result(unsafe { libc::waitpid(-1, &raw mut status, flags.bits()) })?;
    Ok((pid != 0).then_some((Pid::from_raw(pid), status)))
}

/// Restores the default action of SIGPIPE; Rust's runtime ignores the signal.
pub(crate) fn reset_sigpipe() -> nix::Result<()> {
    // SAFETY: the call installs no handler; it restores the default action.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }.map(drop)
}

/// Makes the kernel correct the clock gradually by a number of microseconds. Replaces an unfinished correction.
pub(crate) fn adjust_clock(microseconds: libc::c_long) -> nix::Result<()> {
    // SAFETY: `timex` is plain data, for which all zeroes is a valid value.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    timex.modes = libc::ADJ_OFFSET_SINGLESHOT;
    timex.offset = microseconds;
    // SAFETY: `timex` outlives the call, which reads it and writes to it.
    Errno::result(unsafe { libc::adjtimex(&raw mut timex) }).map(drop)
}

/// Sets the maximum number of bytes in flight towards this side of a vsock connection.
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

/// The kernel's `rand_pool_info`, with a buffer of a fixed size.
#[repr(C)]
struct PoolInput {
    entropy_bits: libc::c_int,
    buffer_bytes: libc::c_int,
    buffer: [u8; SEED_BYTES],
}

/// Adds `seed` to the kernel's entropy pool, and then makes the kernel's random number generator take a new key from
/// the pool. The kernel counts all bits of the seed as unknown to everyone. `device` is `/dev/urandom`.
pub(crate) fn reseed(device: BorrowedFd<'_>, seed: &[u8; SEED_BYTES]) -> nix::Result<()> {
    let (bytes, overflow) = (libc::c_int::try_from(SEED_BYTES), |_too_large| Errno::EOVERFLOW);
    let buffer_bytes = bytes.map_err(overflow)?;
    let input = PoolInput { entropy_bits: buffer_bytes * 8, buffer_bytes, buffer: *seed };
    // SAFETY: `RNDADDENTROPY` reads a `rand_pool_info`. `input` has its layout, its size fields describe its buffer,
    // and it outlives the call.
    Errno::result(unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, &raw const input) })?;
    // SAFETY: `RNDRESEEDCRNG` has no argument.
    Errno::result(unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG) }).map(drop)
}

pub(crate) fn set_loopback_up() -> io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: `ifreq` is plain data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"lo") {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or(0);
    // SAFETY: `SIOCSIFFLAGS` reads an `ifreq`. `request` is an `ifreq` and outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCSIFFLAGS, &raw const request) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

// QEMU's user-mode emulation, which runs the tests for aarch64, does not know these requests.
#[cfg(target_arch = "x86_64")]
#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsFd};

    use super::*;

    #[test]
    fn reseeding_fails_on_a_device_without_a_pool() {
        let device = File::open("/dev/null").unwrap();
        assert_eq!(reseed(device.as_fd(), &[7; SEED_BYTES]), Err(Errno::ENOTTY));
    }

    #[test]
    fn pool_input_has_the_layout_of_the_kernel() {
        assert_eq!(size_of::<PoolInput>(), 8 + SEED_BYTES);
        assert_eq!(std::mem::offset_of!(PoolInput, buffer), 8);
    }
}
