// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The lower bound of the figures: a machine with waggle's own QEMU command line and a minimal init
//! (`guest-agent/examples/raw_port.rs`). The init reports its start, and then only moves bytes over the port of the
//! call link.

use std::{
    ffi::OsStr,
    fs,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    process::{Child, Command},
};

use crate::{cpio, places::static_example, stats::timed};

/// These values must match `raw_port.rs`.
const SEND: u8 = b's';
const TAKE: u8 = b't';

/// The initial root of bare machines, built once.
pub(crate) struct Bare {
    initial_root: Vec<u8>,
}

/// A running bare machine.
pub(crate) struct Running {
    /// Time from QEMU's start to the first line of init on the console.
    pub(crate) init: Duration,
    link: UnixStream,
    _program: Child,
}

impl Bare {
    pub(crate) fn new() -> Self {
        Self { initial_root: cpio::initial_root(&static_example("raw_port")) }
    }

    /// Starts a machine in `folder` with the command line of one of waggle's machines.
    pub(crate) async fn start(&self, line: &[String], folder: &Path) -> Running {
        fs::write(folder.join("initramfs"), &self.initial_root).unwrap();
        let listener = UnixListener::bind(folder.join("link")).unwrap();
        let (program, arguments) = line.split_first().unwrap();
        let mut qemu = quiet(program, folder);
        qemu.args(without_run_folder(arguments)).stdout(Stdio::piped());
        let started = Instant::now();
        let mut qemu = qemu.spawn().unwrap();
        let mut console = BufReader::new(qemu.stdout.take().unwrap()).lines();
        while !console.next_line().await.unwrap().unwrap().contains("raw-port: init") {}
        let init = started.elapsed();
        tokio::spawn(async move { while let Ok(Some(_)) = console.next_line().await {} });
        let (link, _) = listener.accept().await.unwrap();
        Running { init, link, _program: qemu }
    }
}

impl Running {
    /// Receives `bytes` bytes from the guest. Returns the time from the request to the last byte.
    pub(crate) async fn up(&mut self, bytes: usize) -> Duration {
        let mut content = Vec::with_capacity(bytes);
        let (link, limit) = (&mut self.link, bytes as u64);
        let work = async {
            order(link, SEND, bytes).await;
            link.take(limit).read_to_end(&mut content).await.unwrap()
        };
        let (time, read) = timed(work).await;
        assert_eq!(read, bytes);
        time
    }

    /// Sends the content to the guest. Returns the time until the guest confirms the last byte.
    pub(crate) async fn down(&mut self, content: &[u8]) -> Duration {
        let work = async {
            order(&mut self.link, TAKE, content.len()).await;
            self.link.write_all(content).await.unwrap();
            self.link.read_u8().await.unwrap()
        };
        timed(work).await.0
    }

    /// Returns the time of a round trip without content.
    pub(crate) async fn round_trip(&mut self) -> Duration {
        self.down(&[]).await
    }
}

async fn order(link: &mut UnixStream, what: u8, bytes: usize) {
    let mut order = vec![what];
    order.extend_from_slice(&u32::try_from(bytes).unwrap().to_le_bytes());
    link.write_all(&order).await.unwrap();
}

fn quiet(program: impl AsRef<OsStr>, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    command
}

// Adapts the command line of waggle's machine. Removes the scratch disk, which belongs to that machine. Replaces the
// connection of the port, which was passed as a descriptor.
fn without_run_folder(arguments: &[String]) -> Vec<String> {
    let mut kept = Vec::new();
    let mut words = arguments.iter().peekable();
    while let Some(word) = words.next() {
        match words.peek().map(|value| value.as_str()) {
            Some(value) if value.contains("id=scratch") || value == "virtio-blk-device,drive=scratch" => {
                words.next();
            }
            Some(value) if value.starts_with("socket,id=waggle.calls,") => {
                words.next();
                kept.extend([word.clone(), "socket,id=waggle.calls,path=link".to_owned()]);
            }
            _ => kept.push(word.clone()),
        }
    }
    kept
}
