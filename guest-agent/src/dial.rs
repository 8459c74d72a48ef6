// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Dials the host over vsock and serves, until the machine is to go off.

use std::{io, os::fd::AsFd, time::Duration};

use tokio::time::sleep;
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockStream};
use waggle_protocol::CALL_PORT;

use crate::{console::report, guest::Guest, sys};

/// Bytes in flight towards the guest on one connection: the kernel resets a connection that is flooded with small
/// packets while its reader is slow, and this much room keeps it from that.
const VSOCK_BUFFER_BYTES: u64 = 8 * 1024 * 1024;

/// Between two tries to reach the host, which listens before the machine starts: a try fails only while the device of
/// the host's side is still coming up.
const RETRY: Duration = Duration::from_millis(20);

/// Tries before the agent gives up: 5 s.
const TRIES: u32 = 250;

/// Serves `guest` to the host until it asks to power off; `ready` runs once the host has accepted the agent.
///
/// # Errors
/// The runtime or the connection that could not be made, or how serving ended.
pub fn serve_machine(guest: Guest, ready: impl FnOnce()) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let served = runtime.block_on(async {
        let stream = connect(CALL_PORT).await?;
        crate::serve(stream, guest, ready).await.map_err(io::Error::other)
    });
    // Workers that hang in the kernel must not hold the power-off.
    runtime.shutdown_background();
    served
}

/// Dials a port of the host.
///
/// # Errors
/// What the last try came to.
pub(crate) async fn connect(port: u32) -> io::Result<VsockStream> {
    let mut tries = 0;
    loop {
        tries += 1;
        match VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, port)).await {
            Ok(stream) => {
                if let Err(source) = sys::set_vsock_buffer(stream.as_fd(), VSOCK_BUFFER_BYTES) {
                    report(&format!("failed to widen the vsock buffer: {source}"));
                }
                return Ok(stream);
            }
            Err(source) if tries == TRIES => return Err(source),
            Err(_not_yet) => sleep(RETRY).await,
        }
    }
}
