// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The floor that waggle is measured against: an init that loads the modules of its initramfs, says that it runs, and
//! moves bytes over one vsock connection with nothing in between. `host/benches/machines.py` starts it.
#![expect(clippy::print_stdout, reason = "the console is how it says that it runs")]

use std::{
    error::Error,
    ffi::CString,
    fs::{self, File},
    io::{Read, Write},
    os::fd::AsRawFd,
    thread,
    time::Duration,
};

use nix::{
    kmod::{ModuleInitFlags, finit_module},
    sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket},
};

/// Bytes moved each way; the bench knows the same number.
const BYTES: usize = 64 * 1024 * 1024;
/// As much as the agent gives to one write.
const CHUNK_BYTES: usize = 64 * 1024;
const HOST_CID: u32 = 2;
const PORT: u32 = 1026;
/// Leaving would panic the kernel before the last bytes have gone; the bench ends the machine.
const LINGER: Duration = Duration::from_secs(3600);

fn main() -> Result<(), Box<dyn Error>> {
    println!("raw-vsock: init");
    let mut modules: Vec<_> =
        fs::read_dir("/modules")?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    modules.sort();
    for module in modules {
        finit_module(File::open(module)?, &CString::default(), ModuleInitFlags::empty())?;
    }
    let link = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::empty(), None)?;
    connect(link.as_raw_fd(), &VsockAddr::new(HOST_CID, PORT))?;
    let mut link = File::from(link);
    let mut chunk = vec![0; CHUNK_BYTES];
    for _ in 0..BYTES / CHUNK_BYTES {
        link.write_all(&chunk)?;
    }
    for _ in 0..BYTES / CHUNK_BYTES {
        link.read_exact(&mut chunk)?;
    }
    link.write_all(b".")?;
    thread::sleep(LINGER);
    Ok(())
}
