// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! A link over a port in which earlier processes have left arbitrary bytes, in both directions. The link must begin,
//! and its data must arrive unchanged. Arbitrary bytes after the data must end the link, and must not count as data.
//! The clock is paused and advances only when all tasks wait, so timeouts cost no real time.
#![no_main]

use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    runtime::{Builder, Runtime},
};
use waggle_link::{Past, Records, await_dial, begin};

/// Timeout of a stuck link.
const STUCK: Duration = Duration::from_secs(24 * 60 * 60);

/// Bytes that a port stores: more than the fuzzer's inputs.
const PORT_BYTES: usize = 1 << 20;

#[derive(Arbitrary, Debug)]
struct Input {
    left_by_host: Vec<u8>,
    left_by_guest: Vec<u8>,
    from_host: Vec<u8>,
    from_guest: Vec<u8>,
    after: Vec<u8>,
}

fuzz_target!(|input: Input| {
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build();
    let runtime: Runtime = runtime.expect("failed to start the runtime");
    runtime.block_on(async {
        tokio::time::timeout(STUCK, link(&input)).await.expect("the link is stuck");
    });
});

async fn link(input: &Input) {
    let (mut host, mut guest) = duplex(PORT_BYTES);
    host.write_all(&input.left_by_host).await.expect("failed to leave bytes");
    guest.write_all(&input.left_by_guest).await.expect("failed to leave bytes");
    let answered = async { await_dial(host, Past::Unknown).await.expect("no dial").answer().await.expect("no start") };
    let dialled = async { begin(guest, Past::Unknown).await.expect("no answer") };
    let (mut host, mut guest) = tokio::join!(answered, dialled);
    tokio::join!(send(&mut host, &input.from_host), receive(&mut guest, &input.from_host));
    tokio::join!(send(&mut guest, &input.from_guest), receive(&mut host, &input.from_guest));
    let mut host = host.into_inner();
    host.write_all(&input.after).await.expect("failed to send the bytes after the data");
    drop(host);
    let mut received = Vec::new();
    let ended = guest.read_to_end(&mut received).await;
    // The bytes are a record of this generation only if they contain its random tag.
    assert!(received.is_empty() && ended.is_ok() == input.after.is_empty(), "{received:?}: {ended:?}");
}

async fn send(records: &mut Records<DuplexStream>, bytes: &[u8]) {
    records.write_all(bytes).await.expect("failed to write");
    records.flush().await.expect("failed to flush");
}

async fn receive(records: &mut Records<DuplexStream>, expected: &[u8]) {
    let mut received = vec![0; expected.len()];
    records.read_exact(&mut received).await.expect("failed to read");
    assert!(received == expected);
}
