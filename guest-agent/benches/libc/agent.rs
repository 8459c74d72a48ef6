// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! An agent that runs as a process on this machine, and the measured calls.

use std::{
    fs,
    os::{fd::OwnedFd, unix::net::UnixStream as Socket},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    time::{ClockId, clock_getcpuclockid},
    unistd::Pid,
};
use tempfile::TempDir;
use tokio::{io, net::UnixStream};
use waggle_link::{FrameReader, FrameWriter, Opener, Past, answer, await_dial};
use waggle_protocol::{
    CHUNK_BYTES_MAX, Hello, Input, Link, Ready, Reply, Request, Seed, Welcome,
    handshake::SEED_BYTES,
    request::{Exec, Keep, Limits, User},
};

/// The parent of the agents' folders. It is in memory, so that the benchmark does not measure a disk.
const MEMORY: &str = "/dev/shm";

pub(crate) struct Agent {
    link: Opener,
    process: Child,
    root: TempDir,
}

impl Agent {
    /// Starts `program`, and waits for its hello.
    pub(crate) async fn start(program: &Path) -> Self {
        let root = tempfile::tempdir_in(MEMORY).unwrap();
        for folder in ["home/sandbox", "tmp"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        let (near, far) = Socket::pair().unwrap();
        let mut command = Command::new(program);
        let process = command.arg(root.path()).stdin(Stdio::from(OwnedFd::from(far))).spawn().unwrap();
        drop(command);
        near.set_nonblocking(true).unwrap();
        let near = UnixStream::from_std(near).unwrap();
        let mut near = answer(await_dial(near, Past::None).await.unwrap(), Link::Call).await.unwrap();
        FrameReader::new(&mut near).receive::<Hello>().await.unwrap().unwrap();
        let welcome = Welcome { unix_ns: 0, hostname: String::new(), seed: Seed([0; SEED_BYTES]) };
        FrameWriter::new(&mut near).send(&welcome).await.unwrap();
        let Ready = FrameReader::new(&mut near).receive::<Ready>().await.unwrap().unwrap();
        Self { link: Opener::start(near, Link::Call), process, root }
    }

    /// Returns the processor time of the agent's process, without the commands that the agent started.
    pub(crate) fn processor_time(&self) -> Duration {
        let process = Pid::from_raw(i32::try_from(self.process.id()).unwrap());
        clock_getcpuclockid(process).and_then(ClockId::now).unwrap().into()
    }

    /// Makes one call, and returns the number of bytes or entries in its replies.
    async fn call(&self, request: Request, body: &[u8]) -> usize {
        let (read, write) = io::split(self.link.open().await.unwrap());
        let mut writer = FrameWriter::new(write);
        let send = async {
            writer.send(&request).await.unwrap();
            for chunk in body.chunks(CHUNK_BYTES_MAX) {
                writer.send(&Input::Data(chunk)).await.unwrap();
            }
        };
        let receive = async {
            let (mut reader, mut bytes) = (FrameReader::new(read), 0);
            loop {
                match reader.receive::<Reply<'_>>().await.unwrap().unwrap() {
                    Reply::Stdout(data) | Reply::Stderr(data) | Reply::Data(data) => bytes += data.len(),
                    Reply::Entries(entries) => bytes += entries.len(),
                    Reply::Fault(fault) => panic!("{fault:?}"),
                    Reply::Exited(_) | Reply::Written { .. } | Reply::ClockSet { .. } | Reply::Done => break bytes,
                    Reply::FileEnd { .. } | Reply::ListEnd { .. } => break bytes,
                }
            }
        };
        tokio::join!(send, receive).1
    }

    /// Runs a command, and checks that its output has `bytes` bytes.
    pub(crate) async fn run(&self, argv: &[&str], bytes: usize) {
        let request = Request::Exec(Exec {
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            script: None,
            stdin_bytes: 0,
            env: Vec::new(),
            working_directory: None,
            user: User::Sandbox,
            timeout_ms: 60_000,
            limits: Limits { memory_bytes: None, pids: None, open_files: None },
            keep: Keep { above_bytes: u64::MAX, bytes_max: 0 },
        });
        let printed = self.call(request, &[]).await;
        assert_eq!(printed, bytes, "{argv:?}");
    }

    pub(crate) async fn write(&self, path: &str, content: &[u8]) {
        let request =
            Request::WriteFile { path: path.to_owned(), bytes: content.len() as u64, mode: None, append: false };
        self.call(request, content).await;
    }

    pub(crate) async fn read(&self, path: &str, bytes: usize) {
        let request = Request::ReadFile { path: path.to_owned(), range: None, bytes_max: bytes as u64 };
        let read = self.call(request, &[]).await;
        assert_eq!(read, bytes, "{path}");
    }

    /// Lists a folder, and checks that it has the given number of `entries`.
    pub(crate) async fn list(&self, path: &str, entries: usize) {
        let entries_max = u32::try_from(entries).unwrap();
        let request = Request::ListFiles { path: path.to_owned(), after: Vec::new(), entries_max, recursive: false };
        let listed = self.call(request, &[]).await;
        assert_eq!(listed, entries, "{path}");
    }

    /// Creates a folder with `entries` empty files in the agent's home.
    pub(crate) fn fill(&self, folder: &str, entries: usize) {
        let folder = self.root.path().join("home/sandbox").join(folder);
        fs::create_dir(&folder).unwrap();
        for number in 0..entries {
            fs::write(folder.join(format!("file-{number:06}")), []).unwrap();
        }
    }

    pub(crate) async fn end(mut self) {
        self.call(Request::PowerOff, &[]).await;
        self.process.wait().unwrap();
    }
}
