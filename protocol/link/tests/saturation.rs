// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Links under full load in both directions over sockets with tiny buffers, and links that end.
#![expect(clippy::unwrap_used, reason = "a broken stream is a failed test")]

#[path = "links/begun.rs"]
mod begun;

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{self, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::UnixStream,
    time::timeout,
};
use waggle_link::{Acceptor, Breach, FrameReader, FrameWriter, LinkFault, Opener, Stream};
use waggle_protocol::{CHUNK_BYTES_MAX, Input, Link, Reply};

use self::begun::begun;

/// Bytes per stream and direction.
const FLOOD_BYTES: usize = 8 * 1024 * 1024;

/// Number of streams that flood at the same time.
const STREAMS: usize = 8;

/// The timeout after which a stuck test fails; a flood takes a second or two.
const STUCK: Duration = Duration::from_secs(120);

/// Returns a socket pair with small buffers: 4 KiB are requested, and the kernel may round up.
fn narrow_pair() -> (UnixStream, UnixStream) {
    let (a, b) = UnixStream::pair().unwrap();
    for socket in [&a, &b] {
        let socket = socket2::SockRef::from(socket);
        socket.set_send_buffer_size(4096).unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
    }
    (a, b)
}

/// Sends and receives a flood at the same time, and checks every byte.
async fn flood(stream: Stream) {
    let (read, write) = io::split(stream);
    let (mut reader, mut writer) = (FrameReader::new(read), FrameWriter::new(write));
    let chunk: Vec<u8> = (0..CHUNK_BYTES_MAX).map(|at| u8::try_from(at % 251).unwrap()).collect();
    let expected = chunk.clone();
    let send = async move {
        for _ in 0..FLOOD_BYTES / CHUNK_BYTES_MAX {
            writer.send(&Input::Data(&chunk)).await.unwrap();
        }
        writer.finish().await.unwrap();
    };
    let receive = async move {
        let mut received = 0;
        while let Some(Input::Data(bytes)) = reader.receive().await.unwrap() {
            assert_eq!(bytes, expected);
            received += bytes.len();
        }
        assert_eq!(received, FLOOD_BYTES);
    };
    tokio::join!(send, receive);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_data_arrives_under_full_load_both_ways_over_4_kib_buffers() {
    let (a, b) = narrow_pair();
    let (a, b) = begun(a, b).await;
    let (opener, mut acceptor) = (Opener::start(a, Link::Call), Acceptor::start(b, Link::Call));
    let serving = tokio::spawn(async move {
        let mut floods = tokio::task::JoinSet::new();
        for _ in 0..STREAMS {
            floods.spawn(flood(acceptor.accept().await.unwrap()));
        }
        floods.join_all().await;
        acceptor
    });
    let mut floods = tokio::task::JoinSet::new();
    for _ in 0..STREAMS {
        floods.spawn(flood(opener.open().await.unwrap()));
    }
    timeout(STUCK, floods.join_all()).await.expect("the opening side is stuck");
    timeout(STUCK, serving).await.expect("the accepting side is stuck").unwrap();
}

#[tokio::test]
async fn two_sides_that_only_write_do_not_deadlock() {
    // Less than the credit of a stream, but much more than what streams and sockets can queue.
    const BYTES: usize = 250_000;
    async fn write_first(mut streams: Vec<Stream>, fill: u8) {
        for stream in &mut streams {
            stream.write_all(&vec![fill; BYTES]).await.unwrap();
        }
        for stream in &mut streams {
            let mut received = vec![0; BYTES];
            stream.read_exact(&mut received).await.unwrap();
            assert!(received == vec![3 - fill; BYTES]);
        }
    }
    let (a, b) = narrow_pair();
    let (a, b) = begun(a, b).await;
    let (opener, mut acceptor) = (Opener::start(a, Link::Call), Acceptor::start(b, Link::Call));
    let (mut opened, mut accepted) = (Vec::new(), Vec::new());
    for _ in 0..STREAMS {
        opened.push(opener.open().await.unwrap());
        opened.last_mut().unwrap().write_all(&[0]).await.unwrap();
        accepted.push(acceptor.accept().await.unwrap());
        accepted.last_mut().unwrap().read_exact(&mut [0]).await.unwrap();
    }
    let both = async { tokio::join!(write_first(opened, 1), write_first(accepted, 2)) };
    timeout(STUCK, both).await.expect("both sides are stuck");
}

/// A connection that records the lengths of its writes.
struct Recorded(UnixStream, Arc<Mutex<Vec<usize>>>);

impl AsyncRead for Recorded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Recorded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.0).poll_write(cx, bytes))?;
        self.1.lock().unwrap().push(bytes.len());
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn frames_are_gathered_into_few_writes_of_at_most_a_packet() {
    let (a, b) = UnixStream::pair().unwrap();
    let writes = Arc::default();
    let (a, b) = begun(Recorded(a, Arc::clone(&writes)), b).await;
    let opener = Opener::start(a, Link::Call);
    let mut acceptor = Acceptor::start(b, Link::Call);
    let mut floods = tokio::task::JoinSet::new();
    for _ in 0..STREAMS {
        floods.spawn(flood(opener.open().await.unwrap()));
    }
    for _ in 0..STREAMS {
        floods.spawn(flood(acceptor.accept().await.unwrap()));
    }
    timeout(STUCK, floods.join_all()).await.expect("the link is stuck");
    let writes = writes.lock().unwrap();
    assert!(writes.iter().all(|bytes| *bytes <= 28 * 1024), "{:?}", writes.iter().max());
    let average = writes.iter().sum::<usize>() / writes.len();
    assert!(average > 14 * 1024, "{} writes of {average} bytes", writes.len());
}

#[tokio::test]
async fn cancelled_receive_loses_nothing() {
    let (near, far) = io::duplex(64);
    let (mut reader, mut writer) = (FrameReader::new(near), FrameWriter::new(far));
    let chunk = vec![7; 1000];
    let sending = tokio::spawn(async move { writer.send(&Reply::Stdout(&chunk)).await.unwrap() });
    // Each poll moves at most 64 bytes; drop the future after each poll.
    let mut polls = 0;
    let length = loop {
        polls += 1;
        tokio::select! {
            biased;
            reply = reader.receive::<Reply<'_>>() => match reply.unwrap() {
                Some(Reply::Stdout(bytes)) => break bytes.len(),
                other => panic!("{other:?}"),
            },
            () = tokio::task::yield_now() => {}
        }
    };
    sending.await.unwrap();
    assert_eq!(length, 1000);
    assert!(polls > 10, "the frame arrived in {polls} polls, so no receive was cancelled");
}

#[tokio::test]
async fn cancelled_send_leaves_no_partial_frame() {
    let (near, far) = io::duplex(64);
    let (mut reader, mut writer) = (FrameReader::new(near), FrameWriter::new(far));
    let chunk = vec![7; 1000];
    assert!(
        timeout(Duration::ZERO, writer.send(&Reply::Stdout(&chunk))).await.is_err(),
        "sending 1000 bytes through a buffer of 64 bytes did not block"
    );
    let sending = tokio::spawn(async move { writer.send(&Reply::Done).await.unwrap() });
    assert_eq!(reader.receive::<Reply<'_>>().await.unwrap(), Some(Reply::Stdout(&vec![7; 1000])));
    assert_eq!(reader.receive::<Reply<'_>>().await.unwrap(), Some(Reply::Done));
    sending.await.unwrap();
}

#[tokio::test]
async fn stream_from_the_wrong_side_ends_the_link() {
    let (a, b) = UnixStream::pair().unwrap();
    let (a, mut b) = begun(a, b).await;
    let opener = Opener::start(a, Link::Call);
    b.write_all(&[1, 0, 0, 0, 0, 0, 0, 0]).await.unwrap();
    b.flush().await.unwrap();
    let fault = timeout(STUCK, opener.ended()).await.unwrap();
    assert!(matches!(fault, LinkFault::Breach { breach: Breach::UnexpectedStream }), "{fault}");
}

#[tokio::test]
async fn link_ends_when_the_peer_closes_it() {
    let (a, b) = UnixStream::pair().unwrap();
    let (a, b) = begun(a, b).await;
    let (opener, acceptor) = (Opener::start(a, Link::Call), Acceptor::start(b, Link::Call));
    drop(acceptor);
    timeout(STUCK, opener.ended()).await.unwrap();
    let fault = opener.open().await.unwrap_err();
    assert!(matches!(fault, LinkFault::Closed), "{fault}");
}

#[tokio::test]
async fn reset_by_a_peer_that_did_not_read_counts_as_closed() {
    let (a, b) = UnixStream::pair().unwrap();
    let (a, mut b) = begun(a, b).await;
    let opener = Opener::start(a, Link::Call);
    let mut stream = opener.open().await.unwrap();
    stream.write_all(b"unread").await.unwrap();
    stream.flush().await.unwrap();
    // Reads the beginning of the record, so that the rest is unread.
    b.read_u8().await.unwrap();
    drop(b);
    let fault = timeout(STUCK, opener.ended()).await.unwrap();
    assert!(matches!(fault, LinkFault::Closed), "{fault}");
}
