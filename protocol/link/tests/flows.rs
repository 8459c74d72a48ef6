// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Connections carried over an egress link: data, ends and resets arrive at the other side.
#![expect(clippy::unwrap_used, reason = "a broken stream is a failed test")]

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, split},
    net::{TcpListener, TcpStream, UnixStream},
    task::JoinHandle,
    time::timeout,
};
use waggle_link::{
    Acceptor, EGRESS_POOL_BYTES, Ending, FlowBreach, FrameReader, FrameWriter, GrantPool, Opener, Past, Stream, answer,
    await_dial, carry, dial,
};
use waggle_protocol::{
    Link,
    egress::{FLOW_CREDIT_BYTES, FLOW_CREDIT_BYTES_MAX, Flow},
};

/// The timeout after which a stuck test fails.
const STUCK: Duration = Duration::from_secs(60);

type Carrier = JoinHandle<Result<Ending, FlowBreach>>;

/// Both sides of a link, each with the pool for its flows.
struct Links {
    opener: Opener,
    acceptor: Acceptor,
    pools: [Arc<GrantPool>; 2],
}

async fn links() -> Links {
    let (a, b) = UnixStream::pair().unwrap();
    let host = async { answer(await_dial(a, Past::None).await.unwrap(), Link::Egress).await };
    let (host, guest) = tokio::join!(host, dial(b, Past::None, Link::Egress));
    let (opener, acceptor) =
        (Opener::start(guest.unwrap(), Link::Egress), Acceptor::start(host.unwrap(), Link::Egress));
    Links { opener, acceptor, pools: [Arc::default(), Arc::default()] }
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (near, listener.accept().await.unwrap().0)
}

fn carrier(stream: Stream, mut connection: TcpStream, pool: &Arc<GrantPool>) -> Carrier {
    let pool = Arc::clone(pool);
    tokio::spawn(async move {
        let (read, write) = split(stream);
        let (mut reader, mut writer) = (FrameReader::new(read), FrameWriter::new(write));
        let ending = carry(&mut reader, &mut writer, &mut connection, &pool).await;
        if !matches!(ending, Ok(Ending::Ended)) {
            socket2::SockRef::from(&connection).set_linger(Some(Duration::ZERO)).unwrap();
        }
        ending
    })
}

impl Links {
    /// Starts a flow. Returns the two connections that the flow joins, and the tasks that carry it.
    async fn flow(&mut self) -> (TcpStream, TcpStream, [Carrier; 2]) {
        let (program, inner) = pair().await;
        let (outer, server) = pair().await;
        let opened = self.opener.open().await.unwrap();
        let (read, mut write) = split(opened);
        // The peer learns of the stream with the first message on it.
        FrameWriter::new(&mut write).send(&Flow::Credit { bytes: 1 }).await.unwrap();
        let mut accepted = self.acceptor.accept().await.unwrap();
        FrameReader::new(&mut accepted).receive::<Flow<'_>>().await.unwrap().unwrap();
        let guest = carrier(read.unsplit(write), inner, &self.pools[0]);
        let host = carrier(accepted, outer, &self.pools[1]);
        (program, server, [guest, host])
    }
}

async fn ended(carriers: [Carrier; 2]) -> [Ending; 2] {
    let [guest, host] = carriers;
    [guest.await.unwrap().unwrap(), host.await.unwrap().unwrap()]
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
    assert_eq!(links.pools.map(|pool| pool.left()), [EGRESS_POOL_BYTES; 2]);
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
    let granted: usize = links.pools.iter().map(|pool| EGRESS_POOL_BYTES - pool.left()).sum();
    assert!(granted <= 2 * FLOW_CREDIT_BYTES_MAX as usize, "{granted}");
    flood.abort();
    drop(read);
}

#[tokio::test]
async fn rejects_invalid_flow_messages() {
    let beyond = vec![0; FLOW_CREDIT_BYTES as usize];
    let cases: [(&[Flow<'_>], &str); 5] = [
        (&[Flow::Data(&[])], "invalid data of 0 bytes on a flow with 8192 bytes of credit"),
        (&[Flow::Data(&beyond), Flow::Data(b"x")], "invalid data of 1 bytes on a flow with 0 bytes of credit"),
        (&[Flow::End, Flow::Data(b"x")], "invalid data of 1 bytes on a flow with 0 bytes of credit"),
        (
            &[Flow::Credit { bytes: 0 }],
            "invalid grant of 0 bytes on top of 8192; must be at least 1, in total at most 262144",
        ),
        (
            &[Flow::Credit { bytes: u32::MAX }],
            "invalid grant of 4294967295 bytes on top of 8192; must be at least 1, in total at most 262144",
        ),
    ];
    for (messages, expected) in cases {
        let mut links = links().await;
        let mut stream = links.opener.open().await.unwrap();
        let mut writer = FrameWriter::new(&mut stream);
        for message in messages {
            writer.send(message).await.unwrap();
        }
        let (outer, server) = pair().await;
        // The connection never accepts any data.
        let outer = Stalled(outer);
        let accepted = links.acceptor.accept().await.unwrap();
        let breach = timeout(STUCK, stalled_carrier(accepted, outer, &links.pools[1])).await.unwrap().unwrap_err();
        assert_eq!(breach.to_string(), expected);
        drop(server);
    }
}

#[tokio::test]
async fn reset_that_a_write_reports_is_a_reset_although_reading_then_reports_the_end() {
    for (error, expected) in [
        (std::io::ErrorKind::ConnectionReset, Flow::Reset),
        // The other side had sent its end before it went away.
        (std::io::ErrorKind::BrokenPipe, Flow::End),
    ] {
        let mut links = links().await;
        let mut stream = links.opener.open().await.unwrap();
        FrameWriter::new(&mut stream).send(&Flow::Data(b"x")).await.unwrap();
        let accepted = links.acceptor.accept().await.unwrap();
        let pool = Arc::clone(&links.pools[1]);
        let host = tokio::spawn(async move {
            let (read, write) = split(accepted);
            let mut connection = FailsOnWrite { error, has_failed: false };
            carry(&mut FrameReader::new(read), &mut FrameWriter::new(write), &mut connection, &pool).await
        });
        let mut reader = FrameReader::new(&mut stream);
        let received = timeout(STUCK, reader.receive::<Flow<'_>>()).await.unwrap().unwrap().unwrap();
        assert_eq!(received, expected, "{error}");
        host.abort();
    }
}

#[tokio::test]
async fn cut_stream_counts_as_a_reset() {
    let mut links = links().await;
    let mut stream = links.opener.open().await.unwrap();
    FrameWriter::new(&mut stream).send(&Flow::Data(b"x")).await.unwrap();
    let (outer, _server) = pair().await;
    let host = carrier(links.acceptor.accept().await.unwrap(), outer, &links.pools[1]);
    drop(stream);
    assert_eq!(timeout(STUCK, host).await.unwrap().unwrap().unwrap(), Ending::Reset);
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
struct Stalled(#[expect(dead_code, reason = "kept open")] TcpStream);

async fn stalled_carrier(stream: Stream, mut connection: Stalled, pool: &GrantPool) -> Result<Ending, FlowBreach> {
    let (read, write) = split(stream);
    carry(&mut FrameReader::new(read), &mut FrameWriter::new(write), &mut connection, pool).await
}

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
