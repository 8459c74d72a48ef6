// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The host's client with a guest that sends arbitrary bytes. Each call must end with a result or an error, and no
//! result may exceed its maximum size. The clock is paused and advances only when all tasks wait, so timeouts cost no
//! real time.
#![no_main]

use std::{sync::LazyLock, time::Duration};

use arbitrary::Unstructured;
use libfuzzer_sys::fuzz_target;
use tokio::runtime::{Builder, Runtime};
use waggle_fuzz::{
    agent::{self, AgentClient, Timeouts},
    domain::{
        command::{Command, CommandLimits, User},
        file::{ListOptions, NAME_TEXT_BYTES_MAX, Writing},
        guest_path::GuestPath,
    },
};
use waggle_link::Past;
use waggle_protocol::{Hello, Link, Origin, Ready, Reply, frame, handshake};

/// Maximum size of a read in bytes.
const READ_BYTES_MAX: u64 = 1000;

/// Maximum number of entries of a listing.
const ENTRIES_MAX: u32 = 20;

/// Timeout of a stuck client; all timeouts under test are shorter.
const STUCK: Duration = Duration::from_secs(24 * 60 * 60);

fuzz_target!(|input: &[u8]| {
    let Some((how, rest)) = input.split_first() else { return };
    let bytes = match how % 4 {
        0 => rest.to_vec(),
        1 => [greeting(), rest.to_vec()].concat(),
        _ => match replies(rest) {
            Some(traffic) => [greeting(), traffic].concat(),
            None => return,
        },
    };
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build();
    let runtime: Runtime = runtime.expect("failed to start the runtime");
    runtime.block_on(async {
        tokio::time::timeout(STUCK, link(&bytes, how % 4 != 0)).await.expect("the client is stuck");
    });
});

fn replies(input: &[u8]) -> Option<Vec<u8>> {
    waggle_fuzz::traffic::<Reply<'_>>(&mut Unstructured::new(input), false).ok()
}

fn greeting() -> Vec<u8> {
    let mut bytes = handshake::preamble(Link::Call).to_vec();
    let hello = Hello { origin: Origin::Image, build: "0".to_owned(), programs: Vec::new() };
    frame::encode(&hello, &mut bytes).expect("failed to encode the hello");
    frame::encode(&Ready, &mut bytes).expect("failed to encode the answer to the welcome");
    bytes
}

async fn link(bytes: &[u8], in_records: bool) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let sends = async {
        if in_records {
            waggle_fuzz::send_in_records(far, bytes).await;
        } else {
            waggle_fuzz::send(far, bytes).await;
        }
    };
    tokio::join!(sends, async {
        if let Ok(host) = agent::connect(near, Past::None, "machine", Timeouts::default()).await {
            calls(&host).await;
        }
    });
}

async fn calls(host: &AgentClient) {
    static PATH: LazyLock<GuestPath> = LazyLock::new(|| GuestPath::parse("file").expect("invalid path"));
    let command = Command {
        argv: vec!["sh".to_owned()],
        script: None,
        stdin: b"stdin".to_vec(),
        env: Vec::new(),
        working_directory: None,
        output_bytes_max: 0,
        keep_output_above_bytes: 1,
        user: User::Sandbox,
        timeout: Duration::from_secs(1),
        limits: CommandLimits::default(),
    };
    let page = ListOptions { entries_max: ENTRIES_MAX, recursive: true, ..ListOptions::default() };
    let mut ignore = |_, _: &[u8]| {};
    let cancelled = Box::pin(tokio::time::sleep(Duration::from_millis(3)));
    let (exec, read, list, write) = tokio::join!(
        host.exec(command, cancelled, &mut ignore),
        host.read_file(&PATH, None, READ_BYTES_MAX),
        host.list_files(&PATH, &page),
        host.write_file(&PATH, &[7; 1000], Writing::default()),
    );
    if let Ok(read) = read {
        assert!(read.bytes.len() as u64 <= READ_BYTES_MAX);
    }
    if let Ok(list) = list {
        assert!(list.entries.len() <= ENTRIES_MAX as usize);
        let names = list.entries.iter().map(|entry| &entry.name).chain(&list.next);
        assert!(names.map(String::len).all(|bytes| (1..=NAME_TEXT_BYTES_MAX).contains(&bytes)));
    }
    drop((exec.map_err(|fault| fault.to_string()), write.map_err(|fault| fault.to_string())));
}
