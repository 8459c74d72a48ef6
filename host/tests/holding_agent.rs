// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The real agent after it was told to hold: its host disappears at each step, and the next host gets a working agent.
#![expect(clippy::unwrap_used, reason = "a test ends where its preparation fails")]

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use guest_agent::{Guest, Mode, dial::Connector};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex, split},
    net::UnixStream,
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};
use waggle::agent::{self, AgentClient, Timeouts};
use waggle_link::{FrameReader, FrameWriter, Opener, Past, Records, answer, await_dial};
use waggle_protocol::{Hello, Link, Origin, Ready, Reply, Request, Seed, Welcome, handshake::SEED_BYTES};

/// Timeout of a stuck test.
const STUCK: Duration = Duration::from_secs(60);

/// Connects to one host after the other.
struct Hosts(mpsc::Receiver<UnixStream>);

impl Connector for Hosts {
    type Stream = UnixStream;

    async fn connect(&mut self) -> io::Result<Option<(UnixStream, Past)>> {
        Ok(self.0.recv().await.map(|stream| (stream, Past::None)))
    }
}

/// Returns the settings of an agent, and the folder that it serves.
fn guest() -> (Guest, TempDir) {
    let root = tempfile::tempdir().unwrap();
    for folder in ["home/sandbox", "tmp"] {
        std::fs::create_dir_all(root.path().join(folder)).unwrap();
    }
    let guest = Guest {
        origin: Origin::Host,
        root: root.path().to_owned(),
        mode: Mode::Caller,
        env: vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())],
        working_directory: None,
    };
    (guest, root)
}

struct Machine {
    hosts: mpsc::Sender<UnixStream>,
    serving: JoinHandle<Result<(), guest_agent::ServeFault>>,
    _root: TempDir,
}

impl Machine {
    fn start() -> Self {
        let (guest, root) = guest();
        let (hosts, receiver) = mpsc::channel(1);
        let serving = tokio::spawn(guest_agent::serve(Hosts(receiver), guest, || {}));
        Self { hosts, serving, _root: root }
    }

    /// Returns the end of a new connection for a host.
    async fn connection(&self) -> UnixStream {
        let (host, agent) = UnixStream::pair().unwrap();
        self.hosts.send(agent).await.unwrap();
        host
    }

    async fn client(&self) -> AgentClient {
        agent::connect(self.connection().await, Past::None, "machine", Timeouts::default()).await.unwrap()
    }

    /// Greets the agent up to a step, and returns the link after the last step.
    async fn greeted(&self, steps: u32) -> Option<Records<UnixStream>> {
        greeted(self.connection().await, Past::None, steps).await
    }

    /// Tells the agent to hold, and leaves.
    async fn hold(&self) {
        hold(self.greeted(6).await.unwrap()).await;
    }
}

/// Greets the agent up to a step, and returns the link after the last step.
async fn greeted<S: AsyncRead + AsyncWrite + Unpin>(connection: S, past: Past, steps: u32) -> Option<Records<S>> {
    let steps = steps.checked_sub(1)?;
    let dialled = await_dial(connection, past).await.unwrap();
    let steps = steps.checked_sub(1)?;
    let mut records = answer(dialled, Link::Call).await.unwrap();
    let steps = steps.checked_sub(1)?;
    FrameReader::new(&mut records).receive::<Hello>().await.unwrap().unwrap();
    let steps = steps.checked_sub(1)?;
    let welcome = Welcome { unix_ns: 0, hostname: "machine".to_owned(), seed: Seed([0; SEED_BYTES]) };
    FrameWriter::new(&mut records).send(&welcome).await.unwrap();
    let steps = steps.checked_sub(1)?;
    FrameReader::new(&mut records).receive::<Ready>().await.unwrap().unwrap();
    steps.checked_sub(1)?;
    Some(records)
}

/// Tells the agent to hold, and leaves after another call.
async fn hold<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(records: Records<S>) {
    let link = Opener::start(records, Link::Call);
    for request in [Request::Hold, Request::SetClock { unix_ns: 0 }] {
        let (read, write) = split(link.open().await.unwrap());
        FrameWriter::new(write).send(&request).await.unwrap();
        let mut reader = FrameReader::new(read);
        let reply = reader.receive().await.unwrap();
        assert!(matches!(reply, Some(Reply::Done | Reply::ClockSet { .. })), "{reply:?}");
    }
    drop(link);
    // The task of the link must end before another host reads from the same port.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

/// One end of a port, which stays open when its user leaves.
#[derive(Clone, Debug)]
struct End(Arc<Mutex<DuplexStream>>);

impl AsyncRead for End {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock().unwrap()).poll_read(cx, buffer)
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.lock().unwrap()).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock().unwrap()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Connector for End {
    type Stream = Self;

    async fn connect(&mut self) -> io::Result<Option<(Self, Past)>> {
        Ok(Some((self.clone(), Past::Unknown)))
    }
}

#[tokio::test]
async fn agent_that_holds_greets_the_next_host_over_the_same_port() {
    let (host, agent) = duplex(1 << 20);
    let (host, agent) = (End(Arc::new(Mutex::new(host))), End(Arc::new(Mutex::new(agent))));
    let (guest, _root) = guest();
    let serving = tokio::spawn(guest_agent::serve(agent, guest, || {}));
    let all = async {
        let mut past = Past::None;
        for steps in 0..6 {
            hold(greeted(host.clone(), past, 6).await.unwrap()).await;
            past = Past::Unknown;
            assert!(greeted(host.clone(), past, steps).await.is_none());
        }
        let host = agent::connect(host.clone(), past, "machine", Timeouts::default()).await.unwrap();
        let path = waggle::domain::guest_path::GuestPath::parse("note").unwrap();
        host.write_file(&path, b"held", waggle::domain::file::Writing::default()).await.unwrap();
    };
    timeout(STUCK, all).await.expect("the agent is stuck");
    serving.abort();
}

#[tokio::test]
async fn agent_that_holds_greets_the_next_host_wherever_the_last_one_left() {
    let machine = Machine::start();
    let all = async {
        for steps in 0..6 {
            machine.hold().await;
            assert!(machine.greeted(steps).await.is_none());
        }
        // A host that comes after several lost ones.
        for steps in [3, 0, 5, 4, 1, 2] {
            assert!(machine.greeted(steps).await.is_none());
        }
        let path = waggle::domain::guest_path::GuestPath::parse("note").unwrap();
        let host = machine.client().await;
        host.write_file(&path, b"held", waggle::domain::file::Writing::default()).await.unwrap();
        assert_eq!(host.read_file(&path, None, 100).await.unwrap().bytes, b"held");
    };
    timeout(STUCK, all).await.expect("the agent is stuck");
    // The last host has made calls and did not tell the agent to hold, so its end ends the machine.
    assert!(timeout(STUCK, machine.serving).await.unwrap().unwrap().is_err());
}

#[tokio::test]
async fn agent_that_holds_ends_when_no_further_host_will_come() {
    let machine = Machine::start();
    machine.hold().await;
    drop(machine.hosts);
    let fault = timeout(STUCK, machine.serving).await.unwrap().unwrap().unwrap_err();
    assert_eq!(fault.to_string(), "no further host will come");
}

#[tokio::test]
async fn agent_that_does_not_hold_ends_with_its_link() {
    for steps in 1..6 {
        let machine = Machine::start();
        assert!(machine.greeted(steps).await.is_none());
        let ended = timeout(STUCK, machine.serving).await.unwrap().unwrap();
        assert!(ended.is_err(), "{steps}");
    }
}
