// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Links over a stream without connections, such as a virtio-serial port: processes at both ends die at any byte, and
//! leave their bytes in the stream for their successors.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a broken stream is a failed test")]

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use waggle_link::{Acceptor, GreetFault, Opener, OpeningFault, Past, answer, await_dial, begin, dial};
use waggle_protocol::{
    Link,
    generation::{BREAK_BYTES, OPENING_BYTES, Opening},
};

/// Timeout of a stuck test.
const STUCK: Duration = Duration::from_secs(60);

/// Bytes that a port stores in each direction.
const PORT_BYTES: usize = 33 << 20;

/// One end of a port. The end stays open when a process that uses it dies.
#[derive(Clone, Debug)]
struct End(Arc<Mutex<DuplexStream>>);

/// Creates a port, and returns the host's end and the guest's end.
fn port() -> (End, End) {
    let (host, guest) = duplex(PORT_BYTES);
    (End(Arc::new(Mutex::new(host))), End(Arc::new(Mutex::new(guest))))
}

/// A process that uses an end of a port. It dies when it has written a number of bytes.
#[derive(Debug)]
struct Process {
    end: End,
    writes_left: usize,
}

impl End {
    fn process(&self) -> Process {
        self.process_that_writes(usize::MAX)
    }

    fn process_that_writes(&self, writes_left: usize) -> Process {
        Process { end: self.clone(), writes_left }
    }
}

impl AsyncRead for Process {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.writes_left == 0 {
            return Poll::Ready(Err(io::ErrorKind::Other.into()));
        }
        Pin::new(&mut *self.end.0.lock().unwrap()).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Process {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.writes_left == 0 {
            return Poll::Ready(Err(io::ErrorKind::Other.into()));
        }
        let bytes = &bytes[..bytes.len().min(self.writes_left)];
        let written = ready!(Pin::new(&mut *self.end.0.lock().unwrap()).poll_write(cx, bytes))?;
        self.writes_left -= written;
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Serves the host's end: echoes every stream, and begins the next generation when one ends.
fn host_that_echoes(end: End) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut past = Past::None;
        loop {
            let dialled = await_dial(end.process(), past).await.unwrap();
            past = Past::Unknown;
            let Ok(records) = answer(dialled, Link::Egress).await else { continue };
            let mut link = Acceptor::start(records, Link::Egress);
            while let Ok(stream) = link.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = tokio::io::split(stream);
                    drop(tokio::io::copy(&mut read, &mut write).await);
                    drop(write.shutdown().await);
                });
            }
        }
    })
}

/// Sends bytes through an echoing stream of a new generation, and reads them back.
async fn echo(process: Process, past: Past, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let records = dial(process, past, Link::Egress).await.map_err(io::Error::other)?;
    let link = Opener::start(records, Link::Egress);
    let (mut read, mut write) = tokio::io::split(link.open().await.map_err(io::Error::other)?);
    let sending = async {
        write.write_all(bytes).await?;
        write.shutdown().await
    };
    let mut echoed = Vec::new();
    let receiving = async { read.read_to_end(&mut echoed).await };
    tokio::try_join!(sending, receiving)?;
    Ok(echoed)
}

/// The bytes that a guest's process writes until it has echoed `BODY`, step by step: within the break, within the
/// opening, after it, and within the first and later records.
fn cuts() -> impl Iterator<Item = usize> {
    let openings = BREAK_BYTES..BREAK_BYTES + 2 * OPENING_BYTES + 100;
    [1, 5, BREAK_BYTES / 2].into_iter().chain(openings).chain((0..40).map(|step| BREAK_BYTES + 200 + 1009 * step))
}

#[tokio::test(start_paused = true)]
async fn successor_of_a_process_that_died_at_any_byte_gets_a_link() {
    let body = vec![7; 100_000];
    let (host, guest) = port();
    let serving = host_that_echoes(host);
    for writes in cuts() {
        let dying = echo(guest.process_that_writes(writes), Past::Unknown, &body);
        let echoed = timeout(STUCK, dying).await.unwrap();
        assert!(!echoed.is_ok_and(|echoed| echoed == body), "{writes}");
        let successor = echo(guest.process(), Past::Unknown, &body);
        let echoed = timeout(STUCK, successor).await.unwrap_or_else(|_| panic!("stuck after {writes} bytes"));
        assert!(echoed.unwrap() == body, "{writes}");
    }
    serving.abort();
}

#[tokio::test(start_paused = true)]
async fn new_host_gets_a_link_whatever_the_old_host_has_left() {
    let body = vec![7; 100_000];
    let (host, guest) = port();
    let dialling = tokio::spawn(async move {
        let mut past = Past::None;
        loop {
            let echoed = echo(guest.process(), past, &body).await;
            past = Past::Unknown;
            if echoed.is_ok_and(|echoed| echoed == body) {
                return;
            }
            sleep(Duration::from_millis(1)).await;
        }
    });
    for writes in cuts() {
        let past = if writes == 1 { Past::None } else { Past::Unknown };
        let dying = async {
            let dialled = await_dial(host.process_that_writes(writes), past).await?;
            let Ok(records) = answer(dialled, Link::Egress).await else { return Ok(()) };
            let mut link = Acceptor::start(records, Link::Egress);
            if let Ok(stream) = link.accept().await {
                let (mut read, mut write) = tokio::io::split(stream);
                drop(tokio::io::copy(&mut read, &mut write).await);
            }
            Ok::<(), OpeningFault>(())
        };
        drop(timeout(STUCK, dying).await.unwrap_or_else(|_| panic!("stuck after {writes} bytes")));
        assert!(!dialling.is_finished(), "{writes}");
    }
    let dialled = await_dial(host.process(), Past::Unknown).await.unwrap();
    let serving = tokio::spawn(async move {
        // The guest may dial once more before it sees this generation.
        let mut dialled = Some(dialled);
        loop {
            let next = match dialled.take() {
                Some(dialled) => dialled,
                None => await_dial(host.process(), Past::Unknown).await.unwrap(),
            };
            let Ok(records) = answer(next, Link::Egress).await else { continue };
            let mut link = Acceptor::start(records, Link::Egress);
            while let Ok(stream) = link.accept().await {
                let (mut read, mut write) = tokio::io::split(stream);
                drop(tokio::io::copy(&mut read, &mut write).await);
                drop(write.shutdown().await);
            }
        }
    });
    timeout(STUCK, dialling).await.expect("the guest is stuck").unwrap();
    serving.abort();
}

#[tokio::test(start_paused = true)]
async fn stale_bytes_of_both_ends_are_discarded() {
    let (host, guest) = port();
    // Every byte could begin an opening, and some do: those of other generations.
    let old = Opening::Start { guest: [1; 16], host: [2; 16] }.encode();
    let stale = [b"waggle\r\x02w".repeat(50), old.to_vec()].concat().repeat((32 << 20) / (450 + OPENING_BYTES));
    for end in [&host, &guest] {
        end.process().write_all(&stale).await.unwrap();
    }
    let serving = host_that_echoes(host);
    let echoed = timeout(STUCK, echo(guest.process(), Past::Unknown, b"fresh")).await.unwrap().unwrap();
    assert_eq!(echoed, b"fresh");
    serving.abort();
}

#[tokio::test]
async fn peer_that_sends_only_garbage_is_refused() {
    let (host, guest) = port();
    let flooding = tokio::spawn(async move {
        let mut process = guest.process();
        while process.write_all(&[b'w'; 65_536]).await.is_ok() {}
    });
    let fault = timeout(STUCK, await_dial(host.process(), Past::None)).await.unwrap().unwrap_err();
    assert_eq!(fault.to_string(), "the peer sent 64 MiB that are not the beginning of a link");
    flooding.abort();
}

#[tokio::test]
async fn guest_that_dials_repeatedly_without_reading_waits() {
    let (near, mut far) = duplex(4096);
    let dials: Vec<u8> = (0..100_u8).flat_map(|number| Opening::Dial { guest: [number; 16] }.encode()).collect();
    let flooding = async { while far.write_all(&dials).await.is_ok() {} };
    let answering = async {
        let dialled = await_dial(near, Past::None).await.unwrap();
        answer(dialled, Link::Call).await
    };
    tokio::select! {
        () = flooding => panic!("the host closed the stream"),
        answered = answering => panic!("{:?}", answered.map(drop)),
        () = sleep(Duration::from_millis(200)) => {}
    }
}

#[tokio::test]
async fn host_answers_the_guest_that_dialled_last() {
    let (host, guest) = port();
    let first = Opening::Dial { guest: [1; 16] }.encode();
    guest.process().write_all(&first).await.unwrap();
    let dialled = await_dial(host.process(), Past::None).await.unwrap();
    let answered = tokio::spawn(answer(dialled, Link::Call));
    let second = timeout(STUCK, dial(guest.process(), Past::Unknown, Link::Call)).await.unwrap();
    let (mut guest, mut host) = (second.unwrap(), timeout(STUCK, answered).await.unwrap().unwrap().unwrap());
    host.write_all(b"second").await.unwrap();
    host.flush().await.unwrap();
    let mut received = [0; 6];
    timeout(STUCK, guest.read_exact(&mut received)).await.unwrap().unwrap();
    assert_eq!(&received, b"second");
}

#[tokio::test(start_paused = true)]
async fn copy_of_a_guest_that_has_dialled_is_answered_at_once() {
    let (host, guest) = port();
    let dialling = tokio::spawn(echo(guest.process(), Past::Unknown, b"copy"));
    let nonce = await_dial(host.process(), Past::None).await.unwrap().nonce();
    // The copy of the machine has another stream, on which the guest has not dialled.
    let begun = Instant::now();
    let records = answer(await_dial(host.process(), Past::Dialled(nonce)).await.unwrap(), Link::Egress).await.unwrap();
    let mut link = Acceptor::start(records, Link::Egress);
    let (mut read, mut write) = tokio::io::split(link.accept().await.unwrap());
    tokio::io::copy(&mut read, &mut write).await.unwrap();
    write.shutdown().await.unwrap();
    assert_eq!(timeout(STUCK, dialling).await.unwrap().unwrap().unwrap(), b"copy");
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn wrong_link_is_refused_with_a_verdict() {
    let (host, guest) = port();
    let answered = async { answer(await_dial(host.process(), Past::None).await.unwrap(), Link::Call).await };
    let (answered, dialled) = tokio::join!(answered, dial(guest.process(), Past::None, Link::Egress));
    for fault in [answered.unwrap_err(), dialled.unwrap_err()] {
        assert!(matches!(fault, GreetFault::Refused { .. }), "{fault}");
    }
}

#[tokio::test]
async fn end_of_the_stream_ends_the_opening() {
    let (near, far) = duplex(4096);
    drop(far);
    assert!(matches!(begin(near, Past::None).await.unwrap_err(), OpeningFault::Io { .. }));
}
