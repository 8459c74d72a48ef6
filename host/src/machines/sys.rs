// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Safe wrappers of the unsafe calls that the machine code needs.
#![expect(
    unsafe_code,
    reason = "fork, inherited descriptors, KVM memory, rdtsc and structs of C have no safe interface"
)]

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use nix::{sched::CloneFlags, sys::signal::SigSet, unistd::ForkResult};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, FdFlags, fcntl_setfd},
    process::{Pid, Signal, set_parent_process_death_signal},
};

/// The last of the three standard descriptors.
const STDERR: RawFd = 2;
/// `_LINUX_CAPABILITY_VERSION_3`.
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// Asks the kernel to kill this process when the thread that forked the process ends. `parent` is a pidfd of that
/// thread's process. A process id would not work, because the parent has none inside a new pid namespace.
///
/// # Errors
/// The parent has ended already, or the kernel's error.
pub(super) fn die_with(parent: &OwnedFd) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // If the parent ended before the call above, the kernel sends no signal.
    let mut parent = [PollFd::new(parent, PollFlags::IN)];
    match poll(&mut parent, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? {
        0 => Ok(()),
        _ => Err(Errno::SRCH.into()),
    }
}

/// Drops a capability from the bounding set, so neither this process nor its programs can regain the capability.
/// Ignores numbers that the kernel does not know.
pub(super) fn drop_from_bounding_set(number: u32) {
    // SAFETY: the call takes only numbers.
    unsafe { nix::libc::prctl(nix::libc::PR_CAPBSET_DROP, nix::libc::c_ulong::from(number), 0, 0, 0) };
}

/// Drops all capabilities of this process.
///
/// # Errors
/// The kernel's error.
pub(super) fn drop_all_capabilities() -> io::Result<()> {
    // One `struct __user_cap_header_struct` and two `struct __user_cap_data_struct`, from <linux/capability.h>.
    let header = [CAPABILITY_VERSION_3, 0_u32];
    let none = [0_u32; 6];
    // SAFETY: both arrays have the size that version 3 of the structures requires, and the kernel only reads them.
    let done = unsafe { nix::libc::syscall(nix::libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes a mount and all mounts below it read-only.
///
/// # Errors
/// The kernel's error; `ENOSYS` before Linux 5.12.
pub(super) fn make_mounts_read_only(place: &Path) -> io::Result<()> {
    let place = CString::new(place.as_os_str().as_bytes())?;
    let read_only =
        nix::libc::mount_attr { attr_set: nix::libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: the path is NUL-terminated, the passed size is that of `read_only`, and the kernel only reads both.
    let done = unsafe {
        nix::libc::syscall(
            nix::libc::SYS_mount_setattr,
            nix::libc::AT_FDCWD,
            place.as_ptr(),
            nix::libc::AT_RECURSIVE,
            &raw const read_only,
            size_of_val(&read_only),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets close-on-exec on every descriptor except the three standard ones.
///
/// # Errors
/// The kernel's list of descriptors cannot be read.
pub(super) fn keep_descriptors_from_children() -> io::Result<()> {
    for entry in fs::read_dir("/proc/self/fd")? {
        let Some(number) = entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()) else { continue };
        if number <= STDERR {
            continue;
        }
        // SAFETY: the number is from the kernel's list of open descriptors, and there is no other thread that could
        // close the descriptor.
        let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
        fcntl_setfd(descriptor, FdFlags::CLOEXEC)?;
    }
    Ok(())
}

/// The process in which a fork returned: the parent or the child.
pub(super) enum ForkedInto {
    /// The parent, with the id of the child.
    Parent(Pid),
    Child,
}

/// Forks this process. No signal is blocked in the child.
///
/// Only for a single-threaded process: the child could never release locks that other threads held.
///
/// # Errors
/// The kernel's error.
pub(super) fn fork_single_threaded() -> io::Result<ForkedInto> {
    // SAFETY: the process has only this thread, so the child may do everything that this process may do.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => forked(child.as_raw()),
        ForkResult::Child => forked(0),
    }
}

/// Forks this process into new namespaces. No signal is blocked in the child. The child must execute a program, because
/// the C library does not notice this fork and still caches the parent's thread id.
///
/// Only for a single-threaded process: the child could never release locks that other threads held.
///
/// # Errors
/// The kernel's error.
pub(super) fn fork_to_execute(namespaces: CloneFlags) -> io::Result<ForkedInto> {
    let flags = nix::libc::c_long::from(namespaces.bits() | nix::libc::SIGCHLD);
    // SAFETY: the call takes only numbers. The process has only this thread, and the child runs on a copy of this
    // thread's stack, so the child may do everything that this process may do.
    let pid = unsafe { nix::libc::syscall(nix::libc::SYS_clone, flags, 0_u64, 0_u64, 0_u64, 0_u64) };
    match i32::try_from(pid) {
        Ok(pid @ 0..) => forked(pid),
        Ok(_) | Err(_) => Err(io::Error::last_os_error()),
    }
}

// `pid` is 0 in the child.
fn forked(pid: i32) -> io::Result<ForkedInto> {
    if let Some(child) = Pid::from_raw(pid) {
        return Ok(ForkedInto::Parent(child));
    }
    SigSet::all().thread_unblock()?;
    Ok(ForkedInto::Child)
}

/// Exits at once, without running the exit handlers that the parent registered.
pub(super) fn exit_now(code: i32) -> ! {
    // SAFETY: the call takes only a number and does not return.
    unsafe { nix::libc::_exit(code) }
}

/// Closes every descriptor except the three standard ones and `kept`. The owners of the closed descriptors must not be
/// used afterwards.
///
/// # Errors
/// The kernel's error.
pub(super) fn close_all_but(kept: BorrowedFd<'_>) -> io::Result<()> {
    let kept = kept.as_raw_fd().unsigned_abs();
    for (first, last) in [(STDERR.unsigned_abs() + 1, kept - 1), (kept + 1, u32::MAX)] {
        if first > last {
            continue;
        }
        // SAFETY: the call takes only numbers. The caller must not use the owners of the closed descriptors.
        let closed = unsafe { nix::libc::syscall(nix::libc::SYS_close_range, first, last, 0) };
        if closed != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

pub(super) fn time_stamp_counter() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and Linux leaves it enabled for processes.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// One page of the probe's guest memory.
#[derive(Clone, Debug)]
#[repr(C, align(4096))]
pub(super) struct Page(pub(super) [u8; 4096]);

/// Maps the pages into the probe's guest from address 0. The pages are never freed, so the guest cannot outlive them.
///
/// # Errors
/// KVM's error.
pub(super) fn give_memory(vm: &VmFd, pages: &'static mut [Page]) -> Result<(), kvm_ioctls::Error> {
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: size_of_val(pages) as u64,
        userspace_addr: pages.as_mut_ptr() as u64,
    };
    // SAFETY: the region is exactly the slice, and the slice is page-aligned. It is mutably borrowed for `'static`, so
    // it is never freed and no Rust code accesses memory that the guest writes.
    unsafe { vm.set_user_memory_region(region) }
}

/// Returns the attributes of a file with all numbers 0.
#[cfg(feature = "msb")]
pub(super) fn zeroed_attributes() -> nix::libc::stat64 {
    // SAFETY: the struct contains only numbers.
    unsafe { std::mem::zeroed() }
}
