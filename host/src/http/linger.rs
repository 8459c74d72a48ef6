// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Reads what a client still sends after an answer that ends its connection.

use std::time::Duration;

use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    time::timeout,
};

/// Maximum time for reading what a client still sends after its head has been rejected. Closing earlier would make the
/// client's system discard the answer.
const LINGER_TIME: Duration = Duration::from_secs(1);

/// Maximum number of bytes that are read after a head has been rejected.
const LINGER_BYTES_MAX: u64 = 1024 * 1024;

/// Reads and discards what a client still sends after the answer, so that the client gets the answer.
pub(super) async fn linger(stream: impl AsyncRead + Unpin) {
    let _ = timeout(LINGER_TIME, tokio::io::copy(&mut stream.take(LINGER_BYTES_MAX), &mut tokio::io::sink())).await;
}
