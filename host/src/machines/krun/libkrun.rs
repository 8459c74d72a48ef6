// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Safe bindings of libkrun: one context, one method per call, errors as `io::Error`.
//!
//! libkrun panics on unexpected errors, and a panic that would leave its C interface aborts the process. So only a
//! process that does nothing else may call it.
#![expect(unsafe_code, reason = "libkrun has a C interface, whose pointers the caller must keep valid")]

use std::{
    ffi::{CStr, c_int},
    io,
    path::Path,
    ptr,
};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW, Symbol};

/// The version of libkrunfw's interface that libkrun 1.x needs, as in the name `libkrunfw.so.5`.
pub(crate) const FIRMWARE_ABI: c_int = 5;
/// The tag of the initial root's file system.
const ROOT: &CStr = c"/dev/root";
/// The raw disk format. Formats that can refer to other files are never given to a guest.
const RAW: u32 = 0;
/// Flushes need not reach the host's disk, because a scratch disk is deleted with its machine.
const NO_SYNC: u32 = 0;
const LINUX_PERMISSIONS: u32 = 0;
const NO_SHARED_MEMORY: u64 = 0;
const NO_TSI: u32 = 0;
/// Stands for no descriptor.
const NONE: c_int = -1;

/// Loads libkrunfw permanently, so that libkrun's own lookup by name finds this one, whatever its path.
///
/// # Errors
/// The file is not a library, or has another version of the interface.
pub(crate) fn load_firmware(path: &Path) -> io::Result<()> {
    // SAFETY: libkrunfw has no initialisers; it is data with three functions to locate it.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.map_err(io::Error::other)?;
    // SAFETY: libkrunfw declares `int krunfw_get_version()`.
    let version: Symbol<unsafe extern "C" fn() -> c_int> =
        unsafe { library.get(b"krunfw_get_version\0") }.map_err(io::Error::other)?;
    // SAFETY: it has no parameters and returns a constant.
    let abi = unsafe { version() };
    if abi != FIRMWARE_ABI {
        return Err(io::Error::other(format!("it has interface version {abi}; must be {FIRMWARE_ABI}")));
    }
    // The library contains the guest's kernel, which must stay mapped until the process ends.
    std::mem::forget(library);
    Ok(())
}

/// The configuration of a machine that has not started yet.
#[derive(Debug)]
pub(super) struct Context(u32);

fn checked(answer: i32) -> io::Result<()> {
    if answer < 0 { Err(io::Error::from_raw_os_error(-answer)) } else { Ok(()) }
}

impl Context {
    /// Creates an empty configuration. The firmware must have been loaded.
    pub(super) fn new() -> io::Result<Self> {
        let number = krun::krun_create_ctx();
        u32::try_from(number).map(Self).map_err(|_| io::Error::from_raw_os_error(-number))
    }

    pub(super) fn set_size(&self, cpus: u8, memory_mib: u32) -> io::Result<()> {
        checked(krun::krun_set_vm_config(self.0, cpus, memory_mib))
    }

    /// Sends the console's output to the log. The console has no input.
    pub(super) fn send_console_to_log(&self) -> io::Result<()> {
        checked(krun::krun_disable_implicit_console(self.0))?;
        // SAFETY: it takes numbers, none of which is a descriptor.
        checked(unsafe { krun::krun_add_virtio_console_default(self.0, NONE, NONE, NONE) })
    }

    /// Creates the initial root, empty, in this process's memory.
    pub(super) fn make_root(&self) -> io::Result<()> {
        // SAFETY: the tag is a C string that outlives the call, and the null pointer stands for no folder of the host.
        checked(unsafe {
            krun::krun_add_virtiofs4(self.0, ROOT.as_ptr(), ptr::null(), NO_SHARED_MEMORY, true, LINUX_PERMISSIONS)
        })
    }

    /// Adds a folder to the initial root. Its parent must have been added.
    pub(super) fn add_folder(&self, path: &CStr, mode: u32) -> io::Result<()> {
        // SAFETY: both are C strings that outlive the call.
        checked(unsafe { krun::krun_fs_add_overlay_dir(self.0, ROOT.as_ptr(), path.as_ptr(), mode) })
    }

    /// Adds a file to the initial root. Its folder must have been added.
    pub(super) fn add_file(&self, path: &CStr, content: &'static [u8], mode: u32) -> io::Result<()> {
        // SAFETY: both are C strings that outlive the call, and the content is never freed or changed.
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

    /// Adds a disk. The guest sees disks in the order of these calls.
    pub(super) fn add_disk(&self, name: &CStr, path: &CStr, read_only: bool) -> io::Result<()> {
        // SAFETY: both are C strings that outlive the call.
        checked(unsafe { krun::krun_add_disk3(self.0, name.as_ptr(), path.as_ptr(), RAW, read_only, false, NO_SYNC) })
    }

    /// Adds the virtual socket, without TSI.
    pub(super) fn add_vsock(&self) -> io::Result<()> {
        checked(krun::krun_disable_implicit_vsock(self.0))?;
        checked(krun::krun_add_vsock(self.0, NO_TSI))
    }

    /// Forwards the guest's connections to a host port to a Unix socket that the host listens on.
    pub(super) fn add_dialled_port(&self, port: u32, socket: &CStr) -> io::Result<()> {
        // SAFETY: the path is a C string that outlives the call.
        checked(unsafe { krun::krun_add_vsock_port2(self.0, port, socket.as_ptr(), false) })
    }

    /// Turns the process into the machine, whose end also ends the process. Returns only if libkrun failed to start it.
    pub(super) fn enter(self) {
        krun::krun_start_enter(self.0);
    }
}
