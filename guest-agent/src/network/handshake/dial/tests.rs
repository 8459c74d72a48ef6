// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Tests of dials over a real link. The test acts as the host.

use std::io;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    task::JoinHandle,
};
use waggle_link::{Acceptor, Opener, Past, answer, await_dial};
use waggle_protocol::{Link, egress::Address};

use super::*;
use crate::network::link;

/// Timeout of a step. Steps need less than a second, so a step that reaches the timeout hangs.
const STUCK: Duration = Duration::from_secs(10);

const TO: ([u8; 4], u16) = ([192, 0, 2, 1], 443);

/// A dial, and the host's end of its stream.
struct Requested {
    stream: Stream,
    dialling: JoinHandle<Result<Flow, Refusal>>,
    connections: Arc<Semaphore>,
    _link: Acceptor,
}

/// Starts a dial to `to`. As the host, reads its request but does not answer it.
async fn requested(to: SocketAddr) -> Requested {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (sender, link) = link::handle();
    let answered = async { answer(await_dial(theirs, Past::None).await.unwrap(), Link::Egress).await };
    let (theirs, ours) = tokio::join!(answered, waggle_link::dial(ours, Past::None, Link::Egress));
    sender.send_replace(Some(Opener::start(ours.unwrap(), Link::Egress)));
    let mut acceptor = Acceptor::start(theirs.unwrap(), Link::Egress);
    let connections = Arc::new(Semaphore::new(1));
    let permits = Arc::clone(&connections);
    let dialling = tokio::spawn(async move {
        let _link_stays_up = sender;
        dial(to, link, permits).await
    });
    let mut stream = timeout(STUCK, acceptor.accept()).await.unwrap().unwrap();
    let mut reader = FrameReader::bounded(&mut stream, EGRESS_FRAME_BYTES_MAX);
    let request = timeout(STUCK, reader.receive::<EgressRequest<'_>>()).await.unwrap().unwrap();
    assert_eq!(request, Some(EgressRequest::Connect { address: Address::V4(TO.0), port: TO.1 }));
    Requested { stream, dialling, connections, _link: acceptor }
}

#[tokio::test]
async fn connected_dial_has_its_stream_and_its_permit() {
    let mut requested = requested(SocketAddr::from(TO)).await;
    FrameWriter::new(&mut requested.stream).send(&FlowReply::Connected).await.unwrap();
    requested.stream.write_all(b"early").await.unwrap();
    let mut flow = timeout(STUCK, requested.dialling).await.unwrap().unwrap().unwrap();
    let mut data = [0; 5];
    timeout(STUCK, flow.stream.read_exact(&mut data)).await.unwrap().unwrap();
    assert_eq!((&data, requested.connections.available_permits()), (b"early", 0));
    drop(flow);
    assert_eq!(requested.connections.available_permits(), 1);
}

#[tokio::test]
async fn failed_dial_has_the_reason_of_the_host() {
    for reason in [Refusal::Policy, Refusal::Unreachable, Refusal::Refused, Refusal::TimedOut, Refusal::Busy] {
        // An IPv6 form of the address is that address.
        let mapped = SocketAddr::new(std::net::Ipv4Addr::from(TO.0).to_ipv6_mapped().into(), TO.1);
        let mut requested = requested(mapped).await;
        FrameWriter::new(&mut requested.stream).send(&FlowReply::Refused { reason }).await.unwrap();
        let answer = timeout(STUCK, requested.dialling).await.unwrap().unwrap();
        assert_eq!(answer.unwrap_err(), reason);
        assert_eq!(requested.connections.available_permits(), 1);
    }
}

#[tokio::test]
async fn dial_without_an_answer_is_unreachable() {
    let requested = requested(SocketAddr::from(TO)).await;
    drop(requested.stream);
    let answer = timeout(STUCK, requested.dialling).await.unwrap().unwrap();
    assert_eq!(answer.unwrap_err(), Refusal::Unreachable);
}

#[tokio::test]
async fn cancelled_dial_resets_its_stream() {
    let mut requested = requested(SocketAddr::from(TO)).await;
    requested.dialling.abort();
    let read = timeout(STUCK, requested.stream.read(&mut [0])).await.expect("no reset in time");
    assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(requested.connections.available_permits(), 1);
}
