// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The four commands of `bpf(2)` that a socket lookup program needs.
//!
//! Attributes have the layout of the kernel's `include/uapi/linux/bpf.h`, up to the last field in use. The kernel
//! treats omitted fields as zero.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use nix::{errno::Errno, libc};

use super::own;

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;

const BPF_MAP_TYPE_SOCKMAP: u32 = 15;
const BPF_PROG_TYPE_SK_LOOKUP: u32 = 30;
const BPF_SK_LOOKUP: u32 = 36;

/// Buffer size for the verifier's message about a program that it rejects. The kernel truncates a longer message.
const VERIFIER_LOG_BYTES: usize = 16 * 1024;

#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_bytes: u32,
    value_bytes: u32,
    entries: u32,
}

#[repr(C)]
struct MapUpdate {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct ProgramLoad {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_bytes: u32,
    log: u64,
    kernel_version: u32,
    program_flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// Creates a map of sockets with the keys from 0 to `entries` - 1.
pub(crate) fn make_socket_map(entries: u32) -> io::Result<OwnedFd> {
    let attributes = MapCreate { map_type: BPF_MAP_TYPE_SOCKMAP, key_bytes: 4, value_bytes: 8, entries };
    // SAFETY: `MapCreate` contains no address.
    unsafe { call(BPF_MAP_CREATE, &attributes) }.map(own)
}

/// Puts a socket into a map. The kernel removes the socket from the map when the last descriptor of the socket is
/// closed.
pub(crate) fn put_socket(map: BorrowedFd<'_>, key: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
    let value = u64::from(number(socket)?);
    let attributes = MapUpdate {
        map: number(map)?,
        padding: 0,
        key: address(&raw const key),
        value: address(&raw const value),
        flags: 0,
    };
    // SAFETY: the addresses point to a key and a value of the sizes that the map expects. Both outlive the call, which
    // only reads them.
    unsafe { call(BPF_MAP_UPDATE_ELEM, &attributes) }.map(drop)
}

/// Loads a socket lookup program, which must not call functions that require the GPL. The error contains the last three
/// lines of the verifier's message in reverse order.
pub(crate) fn load_sk_lookup(instructions: &[u64]) -> io::Result<OwnedFd> {
    let mut log = vec![0_u8; VERIFIER_LOG_BYTES];
    let license = c"Apache-2.0";
    let mut attributes = ProgramLoad {
        program_type: BPF_PROG_TYPE_SK_LOOKUP,
        instruction_count: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        instructions: address(instructions.as_ptr()),
        license: address(license.as_ptr()),
        log_level: 0,
        log_bytes: 0,
        log: 0,
        kernel_version: 0,
        program_flags: 0,
        name: *b"waggle_egress\0\0\0",
        interface: 0,
        attach_type: BPF_SK_LOOKUP,
    };
    // SAFETY: the addresses point to `instruction_count` instructions and to a zero-terminated text. Both outlive the
    // call, which only reads them.
    if let Ok(program) = unsafe { call(BPF_PROG_LOAD, &attributes) } {
        return Ok(own(program));
    }
    attributes.log_level = 1;
    attributes.log_bytes = u32::try_from(log.len()).map_err(io::Error::other)?;
    attributes.log = address(log.as_mut_ptr());
    // SAFETY: as for the first call. Also, `log` has `log_bytes` bytes and is not used elsewhere during the call.
    unsafe { call(BPF_PROG_LOAD, &attributes) }.map(own).map_err(|source| {
        let text = log.split(|byte| *byte == 0).next().unwrap_or_default();
        let last = String::from_utf8_lossy(text).lines().rev().take(3).collect::<Vec<_>>().join("; ");
        io::Error::new(source.kind(), format!("{source} ({last})"))
    })
}

/// Attaches a socket lookup program to a network namespace. Closing the last copy of the returned descriptor detaches
/// the program.
pub(crate) fn link_sk_lookup(program: BorrowedFd<'_>, namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let attributes =
        LinkCreate { program: number(program)?, target: number(namespace)?, attach_type: BPF_SK_LOOKUP, flags: 0 };
    // SAFETY: `LinkCreate` contains no address.
    unsafe { call(BPF_LINK_CREATE, &attributes) }.map(own)
}

/// # Safety
/// `T` must be the command's attributes, and every address in it must be valid for the command.
unsafe fn call<T>(command: libc::c_int, attributes: &T) -> io::Result<RawFd> {
    let address: *const T = attributes;
    // SAFETY: address and size describe `attributes`, which outlives the call. The caller guarantees that the addresses
    // in `attributes` are valid.
    let result = Errno::result(unsafe { libc::syscall(libc::SYS_bpf, command, address, size_of::<T>()) })?;
    RawFd::try_from(result).map_err(io::Error::other)
}

fn number(fd: BorrowedFd<'_>) -> io::Result<u32> {
    u32::try_from(fd.as_raw_fd()).map_err(io::Error::other)
}

fn address<T>(of: *const T) -> u64 {
    of.expose_provenance() as u64
}
