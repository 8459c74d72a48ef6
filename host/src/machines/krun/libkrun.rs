// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! libkrun's calls with a safe face: one context, one method a call, errors as the system's.
//!
//! libkrun panics where it finds something that it did not expect, and a panic that would leave its C interface ends
//! the process. So this is for a process that has nothing else to do.
#![expect(unsafe_code, reason = "libkrun's interface is C's: pointers whose life the caller vouches for")]

use std::{
    ffi::{CStr, c_int},
    io,
    path::Path,
    ptr,
};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW, Symbol};

/// The version of libkrunfw's interface that libkrun 1.x asks for, as in its name, `libkrunfw.so.5`.
pub(crate) const FIRMWARE_ABI: c_int = 5;
/// The tag by which the kernel mounts its first root.
const ROOT: &CStr = c"/dev/root";
/// Disks as they are: formats with references to other files are never what a guest gets.
const RAW: u32 = 0;
/// Flushes of a scratch disk need not reach the host's disk: it is thrown away.
const NO_SYNC: u32 = 0;
/// Permissions as Linux has them.
const LINUX_PERMISSIONS: u32 = 0;
/// No window of shared memory for files.
const NO_SHARED_MEMORY: u64 = 0;
/// None of the ways in which libkrun gives guests the host's network.
const NO_TSI: u32 = 0;
/// The place of a descriptor that there is not.
const NONE: c_int = -1;

/// Loads libkrunfw for good, so that libkrun's own look-up by name finds this one, wherever it lies.
///
/// # Errors
/// The file is no library, or has another interface.
pub(crate) fn load_firmware(path: &Path) -> io::Result<()> {
    // SAFETY: libkrunfw has no initialisers; it is data with three functions to find it.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.map_err(io::Error::other)?;
    // SAFETY: libkrunfw declares `int krunfw_get_version()`.
    let version: Symbol<unsafe extern "C" fn() -> c_int> =
        unsafe { library.get(b"krunfw_get_version\0") }.map_err(io::Error::other)?;
    // SAFETY: it takes nothing and returns a constant.
    let abi = unsafe { version() };
    if abi != FIRMWARE_ABI {
        return Err(io::Error::other(format!("its interface is number {abi}, and libkrun needs {FIRMWARE_ABI}")));
    }
    // What it holds is the guest's kernel, which is mapped until the process ends.
    std::mem::forget(library);
    Ok(())
}

/// A machine as libkrun knows it before it starts.
#[derive(Debug)]
pub(super) struct Context(u32);

fn checked(answer: i32) -> io::Result<()> {
    if answer < 0 { Err(io::Error::from_raw_os_error(-answer)) } else { Ok(()) }
}

impl Context {
    /// An empty one; the firmware has been loaded before.
    pub(super) fn new() -> io::Result<Self> {
        let number = krun::krun_create_ctx();
        u32::try_from(number).map(Self).map_err(|_| io::Error::from_raw_os_error(-number))
    }

    /// Virtual CPUs, and memory in MiB.
    pub(super) fn set_size(&self, cpus: u8, memory_mib: u32) -> io::Result<()> {
        checked(krun::krun_set_vm_config(self.0, cpus, memory_mib))
    }

    /// Has the console's lines go to the log; nothing goes into the console.
    pub(super) fn send_console_to_log(&self) -> io::Result<()> {
        checked(krun::krun_disable_implicit_console(self.0))?;
        // SAFETY: it takes numbers, and these are of no descriptor.
        checked(unsafe { krun::krun_add_virtio_console_default(self.0, NONE, NONE, NONE) })
    }

    /// Makes the first root, empty, of this process's memory.
    pub(super) fn make_root(&self) -> io::Result<()> {
        // SAFETY: the tag is a C string that outlives the call, and no folder means none of the host's.
        checked(unsafe {
            krun::krun_add_virtiofs4(self.0, ROOT.as_ptr(), ptr::null(), NO_SHARED_MEMORY, true, LINUX_PERMISSIONS)
        })
    }

    /// Adds a folder to the first root, after its parent.
    pub(super) fn add_folder(&self, path: &CStr, mode: u32) -> io::Result<()> {
        // SAFETY: both are C strings that outlive the call.
        checked(unsafe { krun::krun_fs_add_overlay_dir(self.0, ROOT.as_ptr(), path.as_ptr(), mode) })
    }

    /// Adds a file to the first root, after its folder.
    pub(super) fn add_file(&self, path: &CStr, content: &'static [u8], mode: u32) -> io::Result<()> {
        // SAFETY: both are C strings that outlive the call, and the content lives and stays the same for good.
        checked(unsafe {
            krun::krun_fs_add_overlay_file(
                self.0,
                ROOT.as_ptr(),
                path.as_ptr(),
                content.as_ptr(),
                content.len(),
                mode,
                false,
            )
        })
    }

    /// Adds a disk; the guest sees them in the order of the calls.
    pub(super) fn add_disk(&self, name: &CStr, path: &CStr, read_only: bool) -> io::Result<()> {
        // SAFETY: both are C strings that outlive the call.
        checked(unsafe { krun::krun_add_disk3(self.0, name.as_ptr(), path.as_ptr(), RAW, read_only, false, NO_SYNC) })
    }

    /// Adds the virtual socket, without TSI.
    pub(super) fn add_vsock(&self) -> io::Result<()> {
        checked(krun::krun_disable_implicit_vsock(self.0))?;
        checked(krun::krun_add_vsock(self.0, NO_TSI))
    }

    /// Leads the guest's connections to a port of the host's to a Unix socket, on which somebody listens.
    pub(super) fn add_dialled_port(&self, port: u32, socket: &CStr) -> io::Result<()> {
        // SAFETY: the path is a C string that outlives the call.
        checked(unsafe { krun::krun_add_vsock_port2(self.0, port, socket.as_ptr(), false) })
    }

    /// Becomes the machine. The process ends with it; this returns only where libkrun could not make one.
    pub(super) fn enter(self) {
        krun::krun_start_enter(self.0);
    }
}
