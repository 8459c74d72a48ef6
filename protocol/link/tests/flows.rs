// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Connections carried over an egress link: data, ends and resets arrive at the other side.
#![expect(clippy::unwrap_used, reason = "a broken stream is a failed test")]

#[path = "links/begun.rs"]
mod begun;

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
    task::JoinHandle,
    time::timeout,
};
use waggle_link::{Acceptor, EGRESS_POOL_BYTES, Ending, Opener, Stream, carry};
use waggle_protocol::{
    Link,
    egress::{FLOW_CREDIT_BYTES, FLOW_CREDIT_BYTES_MAX},
};

use self::begun::begun;

/// The timeout after which a stuck test fails.
const STUCK: Duration = Duration::from_secs(60);

type Carrier = JoinHandle<Ending>;

/// Both sides of a link.
struct Links {
    opener: Opener,
    acceptor: Acceptor,
}

async fn links() -> Links {
    let (a, b) = UnixStream::pair().unwrap();
    let (a, b) = begun(a, b).await;
    Links { opener: Opener::start(b, Link::Egress), acceptor: Acceptor::start(a, Link::Egress) }
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (near, listener.accept().await.unwrap().0)
}

fn carrier(stream: Stream, mut connection: TcpStream) -> Carrier {
    tokio::spawn(async move {
        let ending = carry(&stream, &mut connection).await;
        if ending != Ending::Ended {
            socket2::SockRef::from(&connection).set_linger(Some(Duration::ZERO)).unwrap();
        }
        ending
    })
}

impl Links {
    /// Opens a stream. Returns both of its ends.
    async fn stream(&mut self) -> (Stream, Stream) {
        let mut opened = self.opener.open().await.unwrap();
        // The peer learns of the stream with the first data on it.
        opened.write_all(&[1]).await.unwrap();
        let mut accepted = self.acceptor.accept().await.unwrap();
        accepted.read_exact(&mut [0]).await.unwrap();
        (opened, accepted)
    }

    /// Starts a flow. Returns the two connections that the flow joins, and the tasks that carry it.
    async fn flow(&mut self) -> (TcpStream, TcpStream, [Carrier; 2]) {
        let (program, inner) = pair().await;
        let (outer, server) = pair().await;
        let (opened, accepted) = self.stream().await;
        (program, server, [carrier(opened, inner), carrier(accepted, outer)])
    }

    /// Returns the credit that both sides have left to lend.
    fn pools(&self) -> [usize; 2] {
        [self.opener.pool_left(), self.acceptor.pool_left()]
    }
}

async fn ended(carriers: [Carrier; 2]) -> [Ending; 2] {
    let [guest, host] = carriers;
    [guest.await.unwrap(), host.await.unwrap()]
}

#[tokio::test]
async fn answer_arrives_after_half_close() {
    let (mut program, mut server, carriers) = links().await.flow_alone().await;
    program.write_all(b"question").await.unwrap();
    program.shutdown().await.unwrap();
    let mut question = String::new();
    server.read_to_string(&mut question).await.unwrap();
    assert_eq!(question, "question");
    server.write_all(b"answer").await.unwrap();
    drop(server);
    let mut answer = String::new();
    program.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "answer");
    assert_eq!(timeout(STUCK, ended(carriers)).await.unwrap(), [Ending::Ended; 2]);
}

#[tokio::test]
async fn reset_arrives_as_a_reset_both_ways() {
    for program_resets in [true, false] {
        let (program, server, carriers) = links().await.flow_alone().await;
        let (resetting, mut other) = if program_resets { (program, server) } else { (server, program) };
        socket2::SockRef::from(&resetting).set_linger(Some(Duration::ZERO)).unwrap();
        drop(resetting);
        let fault = timeout(STUCK, other.read(&mut [0])).await.unwrap().unwrap_err();
        assert_eq!(fault.kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(timeout(STUCK, ended(carriers)).await.unwrap(), [Ending::Reset; 2]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_flows_carry_floods_and_return_their_credit() {
    const BYTES: usize = 256 * 1024;
    let mut links = links().await;
    let mut tasks = Vec::new();
    for seed in 0..200_u8 {
        let (program, server, carriers) = links.flow().await;
        let flood = async move |mut connection: TcpStream| {
            let (mut read, mut write) = connection.split();
            let expected = vec![seed; BYTES];
            let mut received = Vec::new();
            let send = async {
                write.write_all(&expected).await.unwrap();
                write.shutdown().await.unwrap();
            };
            tokio::join!(send, async { read.read_to_end(&mut received).await.unwrap() });
            assert!(received == expected);
        };
        tasks.push(tokio::spawn(async move {
            tokio::join!(flood(program), flood(server));
            assert_eq!(ended(carriers).await, [Ending::Ended; 2]);
        }));
    }
    for task in tasks {
        timeout(STUCK, task).await.unwrap().unwrap();
    }
    assert_eq!(links.pools(), [EGRESS_POOL_BYTES; 2]);
}

#[tokio::test]
async fn slow_reader_delays_only_its_own_flow() {
    let mut links = links().await;
    let (slow, _stalled, _carriers) = links.flow().await;
    let (read, write) = slow.into_split();
    // The flood is larger than the buffers of the sockets and the flow, so this write blocks.
    let mut flood = tokio::spawn(async move {
        let mut write = write;
        write.write_all(&vec![0; 64 * 1024 * 1024]).await.unwrap();
    });
    for _ in 0..20 {
        let (mut program, mut server, carriers) = links.flow().await;
        program.write_all(b"quick").await.unwrap();
        program.shutdown().await.unwrap();
        let mut quick = String::new();
        timeout(STUCK, server.read_to_string(&mut quick)).await.unwrap().unwrap();
        drop((server, program));
        timeout(STUCK, ended(carriers)).await.unwrap();
    }
    assert!(timeout(Duration::from_millis(100), &mut flood).await.is_err(), "the write to the slow flow did not block");
    let granted: usize = links.pools().iter().map(|left| EGRESS_POOL_BYTES - left).sum();
    assert!(granted <= 2 * FLOW_CREDIT_BYTES_MAX as usize, "{granted}");
    flood.abort();
    drop(read);
}

#[tokio::test]
async fn connection_that_accepts_nothing_stops_the_peer_at_its_credit() {
    let mut links = links().await;
    let (mut stream, accepted) = links.stream().await;
    let host = tokio::spawn(async move { carry(&accepted, &mut Stalled).await });
    let flood = vec![7; 2 * FLOW_CREDIT_BYTES as usize];
    let mut sent = 1;
    while let Ok(written) = timeout(Duration::from_millis(300), stream.write(&flood)).await {
        sent += written.unwrap();
    }
    assert_eq!(sent, FLOW_CREDIT_BYTES as usize);
    drop(stream);
    assert_eq!(timeout(STUCK, host).await.unwrap().unwrap(), Ending::Reset);
}

#[tokio::test]
async fn reset_that_a_write_reports_is_a_reset_although_reading_then_reports_the_end() {
    for (error, expected) in [
        (std::io::ErrorKind::ConnectionReset, Err(std::io::ErrorKind::ConnectionReset)),
        // The other side had sent its end before it went away.
        (std::io::ErrorKind::BrokenPipe, Ok(0)),
    ] {
        let mut links = links().await;
        let (mut stream, accepted) = links.stream().await;
        stream.write_all(b"x").await.unwrap();
        let host = tokio::spawn(async move {
            let mut connection = FailsOnWrite { error, has_failed: false };
            carry(&accepted, &mut connection).await
        });
        let read = timeout(STUCK, stream.read(&mut [0])).await.unwrap();
        assert_eq!(read.map_err(|fault| fault.kind()), expected, "{error}");
        host.abort();
    }
}

#[tokio::test]
async fn cut_stream_counts_as_a_reset() {
    let mut links = links().await;
    let (stream, accepted) = links.stream().await;
    let (outer, _server) = pair().await;
    let host = carrier(accepted, outer);
    drop(stream);
    assert_eq!(timeout(STUCK, host).await.unwrap().unwrap(), Ending::Reset);
}

impl Links {
    async fn flow_alone(mut self) -> (TcpStream, TcpStream, [Carrier; 2]) {
        let flow = self.flow().await;
        // Keeps the link alive until the test ends.
        tokio::spawn(async move {
            let _links = self;
            std::future::pending::<()>().await;
        });
        flow
    }
}

/// A connection that neither reads nor writes.
struct Stalled;

impl tokio::io::AsyncRead for Stalled {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _cx: &mut std::task::Context<'_>,
        _buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Pending
    }
}

impl tokio::io::AsyncWrite for Stalled {
    fn poll_write(
        self: std::pin::Pin<&mut Self>,
        _cx: &mut std::task::Context<'_>,
        _bytes: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        std::task::Poll::Pending
    }

    fn poll_flush(
        self: std::pin::Pin<&mut Self>,
        _cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Pending
    }

    fn poll_shutdown(
        self: std::pin::Pin<&mut Self>,
        _cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Pending
    }
}

/// A connection whose first write fails. From then on, reading reports the end, as Linux does.
struct FailsOnWrite {
    error: std::io::ErrorKind,
    has_failed: bool,
}

impl tokio::io::AsyncRead for FailsOnWrite {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _cx: &mut std::task::Context<'_>,
        _buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        if self.has_failed { std::task::Poll::Ready(Ok(())) } else { std::task::Poll::Pending }
    }
}

impl tokio::io::AsyncWrite for FailsOnWrite {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        _cx: &mut std::task::Context<'_>,
        _bytes: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        self.has_failed = true;
        std::task::Poll::Ready(Err(self.error.into()))
    }

    fn poll_flush(
        self: std::pin::Pin<&mut Self>,
        _cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn poll_shutdown(
        self: std::pin::Pin<&mut Self>,
        _cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }
}
