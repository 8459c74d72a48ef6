// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The virtio-serial ports that carry the links to the host in a QEMU machine.
//!
//! PID 1 opens the ports before it switches roots, and never closes them. The kernel allows one open at a time, so no
//! other process in the guest can open a port, not even as root. Each child of PID 1 has only the port that it uses.

use std::{
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll, ready},
    thread,
    time::Duration,
};

use nix::{
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::{read, write},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd},
    time::sleep,
};
use waggle_protocol::boot::{CALL_PORT_NAME, EGRESS_PORT_NAME};

use crate::{
    step::{StepFault, WithStep},
    sys,
};

/// The folder in which the kernel lists the ports.
const LISTED: &str = "/sys/class/virtio-ports";

/// Delay between two checks. A port has its name a moment after its device appears, and the host is connected a moment
/// after that.
const RETRY: Duration = Duration::from_millis(2);

/// Maximum delay between two checks whether the host is connected. A machine may wait for another host for a long time.
const RETRY_MAX: Duration = Duration::from_millis(50);

/// Maximum number of checks for a port; together they take about 5 s.
const TRIES: u32 = 2500;

/// Opens the port of the call link.
pub(crate) fn open_calls() -> Result<OwnedFd, StepFault> {
    open(CALL_PORT_NAME)
}

/// Opens the port of the egress link.
pub(crate) fn open_egress() -> Result<OwnedFd, StepFault> {
    open(EGRESS_PORT_NAME)
}

fn open(name: &str) -> Result<OwnedFd, StepFault> {
    let step = || format!("open the port {name}");
    let device = wait_for(name).step(step)?;
    let mut options = fs::OpenOptions::new();
    let options = options.read(true).write(true).custom_flags(OFlag::O_NONBLOCK.bits());
    options.open(device).map(OwnedFd::from).step(step)
}

fn wait_for(name: &str) -> io::Result<PathBuf> {
    for _ in 0..TRIES {
        if let Some(device) = find(name)? {
            return Ok(device);
        }
        thread::sleep(RETRY);
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "the machine has no port of this name"))
}

fn find(name: &str) -> io::Result<Option<PathBuf>> {
    for port in fs::read_dir(LISTED)? {
        let port = port?;
        let device = Path::new("/dev").join(port.file_name());
        if fs::read_to_string(port.path().join("name")).is_ok_and(|found| found.trim_end() == name) && device.exists() {
            return Ok(Some(device));
        }
    }
    Ok(None)
}

/// A port as a byte stream. The stream ends when the host closes its end.
#[derive(Debug)]
pub(crate) struct Port(AsyncFd<OwnedFd>);

impl Port {
    /// Waits until the host's end is open. Must be called in a Tokio runtime.
    pub(crate) async fn connect(port: BorrowedFd<'_>) -> io::Result<Self> {
        // Tokio remembers a hang-up permanently, so the port is registered only when there is none.
        let mut delay = RETRY;
        while is_hung_up(port)? {
            sleep(delay).await;
            delay = (delay * 2).min(RETRY_MAX);
        }
        sys::watch(port.try_clone_to_owned()?, Interest::READABLE | Interest::WRITABLE).map(Self)
    }
}

fn is_hung_up(port: BorrowedFd<'_>) -> io::Result<bool> {
    let mut polled = [PollFd::new(port, PollFlags::empty())];
    poll(&mut polled, PollTimeout::ZERO)?;
    Ok(polled.iter().any(|port| port.revents().is_some_and(|found| found.contains(PollFlags::POLLHUP))))
}

impl AsyncRead for Port {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(cx))?;
            let has_ended = ready.ready().is_read_closed();
            let free = buffer.initialize_unfilled();
            match ready.try_io(|port| Ok(read(port.as_fd(), free)?)) {
                Ok(result) => {
                    buffer.advance(result?);
                    return Poll::Ready(Ok(()));
                }
                // Tokio remembers a hang-up permanently, so the loop would spin. This stream has ended, even if another
                // host is there by now.
                Err(_would_block) if has_ended => return Poll::Ready(Ok(())),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Port {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(cx))?;
            // A port without a host refuses writes as if it were full. As it also counts as ready, the loop would spin.
            if ready.ready().is_write_closed() {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            if let Ok(result) = ready.try_io(|port| Ok(write(port.as_fd(), bytes)?)) {
                return Poll::Ready(result);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    // A port has no half-close.
    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
