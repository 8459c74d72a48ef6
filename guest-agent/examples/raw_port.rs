// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The baseline for waggle's benchmarks: an init program that reports its start, and transfers bytes over the plain
//! virtio-serial port that otherwise carries the call link. `host/benches/figures` starts this program.
//!
//! Each order of the host is the byte `s` or `t` and a little-endian `u32`. After `s`, this program sends that number
//! of bytes. After `t`, it receives that number of bytes and answers with a dot.
#![expect(clippy::print_stdout, reason = "it reports its start on the console")]

use std::{
    error::Error,
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    os::fd::AsFd,
    path::Path,
    thread::sleep,
    time::Duration,
};

use nix::{
    mount::{MsFlags, mount},
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use waggle_protocol::boot::CALL_PORT_NAME;

/// Size of a write in bytes. A port accepts no larger one.
const CHUNK_BYTES: usize = 32 * 1024;
/// Delay between two checks for the port, which appears a moment after its device.
const RETRY: Duration = Duration::from_millis(2);

fn main() -> Result<(), Box<dyn Error>> {
    println!("raw-port: init");
    for (kind, folder) in [("devtmpfs", "/dev"), ("sysfs", "/sys")] {
        mount(Some(kind), folder, Some(kind), MsFlags::empty(), None::<&str>)?;
    }
    let mut link = open_port();
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

/// Waits for the port of the call link, opens it, and waits until the host's end is open.
fn open_port() -> File {
    loop {
        for port in fs::read_dir("/sys/class/virtio-ports").into_iter().flatten().flatten() {
            let name = fs::read_to_string(port.path().join("name")).unwrap_or_default();
            let device = Path::new("/dev").join(port.file_name());
            if name.trim_end() == CALL_PORT_NAME
                && let Ok(file) = OpenOptions::new().read(true).write(true).open(device)
            {
                while is_hung_up(&file) {
                    sleep(RETRY);
                }
                return file;
            }
        }
        sleep(RETRY);
    }
}

fn is_hung_up(port: &File) -> bool {
    let mut polled = [PollFd::new(port.as_fd(), PollFlags::empty())];
    let _ready = poll(&mut polled, PollTimeout::ZERO);
    polled.iter().any(|port| port.revents().is_some_and(|found| found.contains(PollFlags::POLLHUP)))
}
