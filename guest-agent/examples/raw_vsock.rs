// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The baseline for waggle's benchmarks: an init program that reports its start, and transfers bytes over one plain
//! vsock connection. `host/benches/figures` starts this program.
//!
//! Each order of the host is the byte `s` or `t` and a little-endian `u32`. After `s`, this program sends that number
//! of bytes. After `t`, it receives that number of bytes and answers with a dot.
#![expect(
    clippy::print_stdout,
    unsafe_code,
    reason = "it reports its start on the console; nix has no option for vsock's buffers"
)]

use std::{
    error::Error,
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket},
};

/// Size of a write in bytes, the same as in the agent.
const CHUNK_BYTES: usize = 64 * 1024;
/// Size of the vsock buffer in bytes, the same as in the agent.
const VSOCK_BUFFER_BYTES: u64 = 8 * 1024 * 1024;
const HOST_CID: u32 = 2;
const PORT: u32 = 1026;

fn main() -> Result<(), Box<dyn Error>> {
    println!("raw-vsock: init");
    let link = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::empty(), None)?;
    connect(link.as_raw_fd(), &VsockAddr::new(HOST_CID, PORT))?;
    enlarge_buffer(&link)?;
    let mut link = File::from(link);
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let mut order = [0; 5];
        link.read_exact(&mut order)?;
        let [kind, bytes @ ..] = order;
        let mut left = usize::try_from(u32::from_le_bytes(bytes))?;
        while left > 0 {
            let part = chunk.get_mut(..left.min(CHUNK_BYTES)).unwrap_or_default();
            if kind == b's' {
                link.write_all(part)?
            } else {
                link.read_exact(part)?
            }
            left -= part.len();
        }
        if kind == b't' {
            link.write_all(b".")?;
        }
    }
}

/// Sets `SO_VM_SOCKETS_BUFFER_MAX_SIZE`, then `_SIZE`.
fn enlarge_buffer(link: &OwnedFd) -> io::Result<()> {
    let buffer_bytes = VSOCK_BUFFER_BYTES;
    for option in [2, 0] {
        let length = libc::socklen_t::try_from(size_of::<u64>()).map_err(io::Error::other)?;
        let bytes = (&raw const buffer_bytes).cast();
        // SAFETY: pointer and length describe `buffer_bytes`, which outlives the call; the kernel only reads it.
        let result = unsafe { libc::setsockopt(link.as_raw_fd(), libc::AF_VSOCK, option, bytes, length) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
