// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Connects to the host over vsock.

use std::{io, os::fd::AsFd, time::Duration};

use tokio::time::sleep;
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockStream};

use crate::{console::report, sys};

/// Maximum number of bytes in flight towards the guest on one connection. The kernel resets a connection if many small
/// packets arrive while the reader is slow. A buffer of this size prevents the reset.
const VSOCK_BUFFER_BYTES: u64 = 8 * 1024 * 1024;

/// Delay between two attempts. The host listens before the machine starts, so attempts fail only until the vsock device
/// is ready.
const RETRY: Duration = Duration::from_millis(20);

/// Maximum number of attempts; together they take about 5 s.
const TRIES: u32 = 250;

/// Connects to a port of the host.
///
/// # Errors
/// The error of the last attempt.
pub(crate) async fn connect(port: u32) -> io::Result<VsockStream> {
    let mut tries = 0;
    loop {
        tries += 1;
        match VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, port)).await {
            Ok(stream) => {
                if let Err(source) = sys::set_vsock_buffer(stream.as_fd(), VSOCK_BUFFER_BYTES) {
                    report(&format!("failed to enlarge the vsock buffer: {source}"));
                }
                return Ok(stream);
            }
            Err(source) if tries == TRIES => return Err(source),
            Err(_not_yet) => sleep(RETRY).await,
        }
    }
}
