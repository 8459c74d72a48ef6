// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Safe bindings of libkrun's C interface. Errors are returned as `io::Error`.
//!
//! libkrun panics on unexpected errors, and a panic that reaches its C interface aborts the process. So libkrun may
//! only be called from a process that does nothing else.
#![expect(unsafe_code, reason = "libkrun has a C interface, whose pointers the caller must keep valid")]

use std::{
    ffi::{CStr, c_int},
    io,
    path::Path,
    ptr,
};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW, Symbol};

/// The version of libkrunfw's interface that libkrun 1.x needs. It is the number in the name `libkrunfw.so.5`.
pub(crate) const FIRMWARE_ABI: c_int = 5;
/// The tag of the initial root's file system.
const ROOT: &CStr = c"/dev/root";
/// The raw disk format. Other formats can refer to further files of the host, so they are never used.
const RAW: u32 = 0;
/// The mode in which a guest's flush does not sync the host's disk. Scratch disks are deleted anyway.
const NO_SYNC: u32 = 0;
const LINUX_PERMISSIONS: u32 = 0;
const NO_SHARED_MEMORY: u64 = 0;
const NO_TSI: u32 = 0;
/// Means "no descriptor" in libkrun's calls.
const NONE: c_int = -1;

/// Maximum size of a kernel in bytes: far more than libkrunfw's 21 MB.
const KERNEL_BYTES_MAX: usize = 1 << 30;
/// Size of a page in bytes.
const PAGE_BYTES: usize = 4096;

/// The kernel in a loaded libkrunfw.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FirmwareKernel {
    /// The kernel's memory image, which starts at `address`.
    pub(crate) image: &'static [u8],
    pub(crate) address: u64,
}

/// Loads libkrunfw permanently. libkrun later looks libkrunfw up by name and finds this loaded library, so the file can
/// have any path. Reads the whole kernel, which crashes the process if the file is truncated.
///
/// # Errors
/// The file is not a library, its interface version is not [`FIRMWARE_ABI`], or it contains no kernel.
pub(crate) fn load_firmware(path: &Path) -> io::Result<FirmwareKernel> {
    // SAFETY: libkrunfw runs no code when it is loaded. It contains data, and functions that locate the data.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.map_err(io::Error::other)?;
    // SAFETY: libkrunfw declares `int krunfw_get_version()`.
    let version: Symbol<unsafe extern "C" fn() -> c_int> =
        unsafe { library.get(b"krunfw_get_version\0") }.map_err(io::Error::other)?;
    // SAFETY: the function has no parameters and returns a constant.
    let abi = unsafe { version() };
    if abi != FIRMWARE_ABI {
        return Err(io::Error::other(format!("the interface version is {abi}; must be {FIRMWARE_ABI}")));
    }
    let kernel = find_kernel(&library);
    // The library contains the guest's kernel, which must stay mapped until the process ends.
    std::mem::forget(library);
    let no_kernel = || io::Error::other("the library contains no kernel; `./taskw firmware` fetches one that does");
    let kernel = kernel.ok_or_else(no_kernel)?;
    // Reads a byte of each page.
    std::hint::black_box(kernel.image.iter().step_by(PAGE_BYTES).fold(0, |sum, byte| sum ^ byte));
    Ok(kernel)
}

fn find_kernel(library: &Library) -> Option<FirmwareKernel> {
    // SAFETY: libkrunfw declares `char *krunfw_get_kernel(size_t *load_addr, size_t *entry_addr, size_t *size)`.
    let locate: Symbol<unsafe extern "C" fn(*mut usize, *mut usize, *mut usize) -> *const u8> =
        unsafe { library.get(b"krunfw_get_kernel\0") }.ok()?;
    let (mut address, mut entry, mut bytes) = (0, 0, 0);
    // SAFETY: the function only writes to its three arguments.
    let start = unsafe { locate(&raw mut address, &raw mut entry, &raw mut bytes) };
    if start.is_null() || bytes == 0 || bytes > KERNEL_BYTES_MAX {
        return None;
    }
    // SAFETY: the library states that its constant data has `bytes` bytes from `start` on. It is never unloaded.
    let image = unsafe { std::slice::from_raw_parts(start, bytes) };
    Some(FirmwareKernel { image, address: address as u64 })
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
        // SAFETY: the call takes only numbers, and none of them is a descriptor.
        checked(unsafe { krun::krun_add_virtio_console_default(self.0, NONE, NONE, NONE) })
    }

    /// Creates an empty initial root in this process's memory.
    pub(super) fn make_root(&self) -> io::Result<()> {
        // SAFETY: the tag is a C string that outlives the call, and the null pointer means that no folder of the host
        // is shared.
        checked(unsafe {
            krun::krun_add_virtiofs4(self.0, ROOT.as_ptr(), ptr::null(), NO_SHARED_MEMORY, true, LINUX_PERMISSIONS)
        })
    }

    /// Adds a folder to the initial root. The folder's parent must have been added before.
    pub(super) fn add_folder(&self, path: &CStr, mode: u32) -> io::Result<()> {
        // SAFETY: both are C strings that outlive the call.
        checked(unsafe { krun::krun_fs_add_overlay_dir(self.0, ROOT.as_ptr(), path.as_ptr(), mode) })
    }

    /// Adds a file to the initial root. The file's folder must have been added before.
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

    /// Adds the virtual socket device, without TSI.
    pub(super) fn add_vsock(&self) -> io::Result<()> {
        checked(krun::krun_disable_implicit_vsock(self.0))?;
        checked(krun::krun_add_vsock(self.0, NO_TSI))
    }

    /// Forwards vsock port `port` of the host. The guest's connections to this port arrive at the Unix socket `socket`.
    pub(super) fn add_dialled_port(&self, port: u32, socket: &CStr) -> io::Result<()> {
        // SAFETY: the path is a C string that outlives the call.
        checked(unsafe { krun::krun_add_vsock_port2(self.0, port, socket.as_ptr(), false) })
    }

    /// Turns this process into the machine: the process exits when the machine ends. Returns only if libkrun failed to
    /// start the machine.
    pub(super) fn enter(self) {
        krun::krun_start_enter(self.0);
    }
}
