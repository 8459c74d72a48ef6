// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The reading end of an output pipe. It is registered with the runtime only while a reader waits for it: each write to
//! a registered pipe wakes the agent, and a program that writes each line on its own would run at a fraction of its
//! speed.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    unistd::{pipe2, read},
};
use tokio::io::Interest;

use crate::sys;

#[derive(Debug)]
pub(super) struct OutputPipe(OwnedFd);

impl OutputPipe {
    /// Creates a pipe. Returns its reading and its writing end.
    pub(super) fn open() -> io::Result<(Self, OwnedFd)> {
        let (reading, writing) = pipe2(OFlag::O_CLOEXEC)?;
        // Only this end: programs expect that their writes block.
        fcntl(&reading, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok((Self(reading), writing))
    }

    /// Reads the next bytes, and returns their number; 0 at the end. Dropping the future loses no bytes.
    pub(super) async fn read(&self, buffer: &mut [u8]) -> usize {
        loop {
            match self.read_now(buffer) {
                Err(Errno::EAGAIN) => {}
                // An error of the pipe is treated as the end of the output.
                read => return read.unwrap_or(0),
            }
            let Ok(waiting) = sys::watch_borrowed(self.0.as_fd(), Interest::READABLE) else { return 0 };
            if waiting.readable().await.is_err() {
                return 0;
            }
        }
    }

    /// Reads without waiting, and returns the number of bytes; 0 at the end, and `EAGAIN` if the pipe is empty.
    pub(super) fn read_now(&self, buffer: &mut [u8]) -> nix::Result<usize> {
        read(&self.0, buffer)
    }
}
