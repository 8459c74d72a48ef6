// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The guest agent with a host that sends arbitrary bytes. The agent must stop serving when the link ends, and must
//! change nothing outside its root. No command runs, because a seccomp filter makes each `execve` fail.
#![no_main]

use std::{collections::BTreeMap, fs, path::Path, sync::LazyLock, time::Duration};

use arbitrary::Unstructured;
use guest_agent::{Guest, Mode, dial::SingleStream};
use libfuzzer_sys::fuzz_target;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    runtime::{Builder, Runtime},
};
use waggle_link::{Past, await_dial};
use waggle_protocol::{
    Link, Origin, Request, Seed, Welcome, frame,
    handshake::{self, SEED_BYTES},
};

/// System calls that start another program: `execve` and `execveat` on x86_64.
const EXEC: [i64; 2] = [59, 322];

/// The value of `EPERM`.
const NOT_PERMITTED: u32 = 1;

/// Timeout of a stuck agent; no input needs this long.
const STUCK: Duration = Duration::from_secs(20);

/// A file in the base folder, outside the root. The file must be unchanged after each input.
const OUTSIDE: &str = "outside";

/// The folder that contains the roots.
static BASE: LazyLock<TempDir> = LazyLock::new(|| {
    let rules = EXEC.map(|call| (call, Vec::new()));
    let refuse = SeccompAction::Errno(NOT_PERMITTED);
    let filter = SeccompFilter::new(BTreeMap::from(rules), SeccompAction::Allow, refuse, TargetArch::x86_64);
    let filter: BpfProgram = filter.and_then(TryInto::try_into).expect("failed to compile the filter");
    seccompiler::apply_filter_all_threads(&filter).expect("failed to install the filter");
    let started = std::process::Command::new("/bin/true").status();
    assert!(started.is_err(), "the seccomp filter did not stop a command from starting");
    // Use memory if possible, because each input creates a root.
    let base = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("failed to create a folder");
    fs::write(base.path().join(OUTSIDE), OUTSIDE).expect("failed to write a file");
    base
});

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().enable_all().build().expect("failed to start the runtime"));

fuzz_target!(|input: &[u8]| {
    // The first use of `BASE` installs the filter on all threads. This must happen before the agent serves an input.
    let base = BASE.path();
    let Some((how, rest)) = input.split_first() else { return };
    let bytes = match how % 4 {
        0 => rest.to_vec(),
        1 => [greeting(), rest.to_vec()].concat(),
        _ => match waggle_fuzz::traffic::<Request>(&mut Unstructured::new(rest), true) {
            Ok(traffic) => [greeting(), traffic].concat(),
            Err(_used_up) => return,
        },
    };
    RUNTIME.block_on(serve(base, &bytes, how % 4 != 0));
    assert_eq!(fs::read_to_string(base.join(OUTSIDE)).expect("failed to read the file outside the root"), OUTSIDE);
});

fn greeting() -> Vec<u8> {
    let (answer, _) = handshake::check_preamble(handshake::preamble(Link::Call), Link::Call);
    let mut bytes = answer.expect("the preamble got no answer").to_vec();
    let welcome = Welcome { unix_ns: 0, hostname: "machine".to_owned(), seed: Seed([0; SEED_BYTES]) };
    frame::encode(&welcome, &mut bytes).expect("failed to encode the welcome");
    bytes
}

async fn serve(base: &Path, bytes: &[u8], in_records: bool) {
    // Each input needs a new root, because a worker of an earlier input may still write to the earlier root.
    let folder = tempfile::tempdir_in(base).expect("failed to create a folder");
    let root = folder.path().join("root");
    for folder in ["home/sandbox", "tmp"] {
        fs::create_dir_all(root.join(folder)).expect("failed to create a folder");
    }
    let guest = Guest { origin: Origin::Host, root, mode: Mode::Caller, env: Vec::new(), working_directory: None };
    let (near, far) = tokio::io::duplex(64 * 1024);
    let host = async {
        if !in_records {
            return send(near, bytes).await;
        }
        let Ok(dialled) = await_dial(near, Past::None).await else { return };
        if let Ok(records) = dialled.answer().await {
            send(records, bytes).await;
        }
    };
    let connector = SingleStream::new(far);
    let both = async { tokio::join!(guest_agent::serve(connector, guest, || {}), host) };
    let (served, ()) = tokio::time::timeout(STUCK, both).await.expect("the agent is stuck");
    drop(served.map_err(|fault| fault.to_string()));
}

async fn send<S: AsyncRead + AsyncWrite>(stream: S, bytes: &[u8]) {
    let (mut reading, mut writing) = tokio::io::split(stream);
    let reads = async {
        let mut sink = [0; 4096];
        while reading.read(&mut sink).await.is_ok_and(|read| read > 0) {}
    };
    let writes = async {
        let _written = writing.write_all(bytes).await;
        let _flushed = writing.flush().await;
        // Let the agent respond.
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = reads => {}
        () = writes => {}
    }
}
