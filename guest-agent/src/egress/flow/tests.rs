// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! A program's connection, a flow and a real link; the host is this test.

use std::io;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UnixStream},
    task::JoinHandle,
};
use waggle_link::{Acceptor, Opener};
use waggle_protocol::{
    Link,
    egress::{Address, FLOW_CREDIT_BYTES, Refusal},
};

use super::*;
use crate::egress::{link, sockets::reset};

/// Nothing here takes a second; what takes longer is stuck.
const STUCK: Duration = Duration::from_secs(10);

const TO: ([u8; 4], u16) = ([192, 0, 2, 1], 443);

/// The program's end of a connection, the host's end of its flow, and what carries one to the other.
struct Carried {
    program: TcpStream,
    reader: Reader,
    writer: Writer,
    carrying: JoinHandle<()>,
    _link: Acceptor,
}

/// A flow whose request the host has read, and not answered.
async fn asked() -> Carried {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let program = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (tcp, _) = listener.accept().await.unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (up, carrier) = link::carrier();
    up.send_replace(Some(Opener::start(ours, Link::Egress)));
    let mut acceptor = Acceptor::start(theirs, Link::Egress);
    let carrying = tokio::spawn(async move {
        carry(tcp, SocketAddr::from(TO), &carrier, &GrantPool::default()).await;
        drop(up);
    });
    let (read, write) = tokio::io::split(timeout(STUCK, acceptor.accept()).await.unwrap().unwrap());
    let (mut reader, writer) = (FrameReader::bounded(read, EGRESS_FRAME_BYTES_MAX), FrameWriter::new(write));
    let request = timeout(STUCK, reader.receive::<EgressRequest<'_>>()).await.unwrap().unwrap();
    assert_eq!(request, Some(EgressRequest::Connect { address: Address::V4(TO.0), port: TO.1 }));
    Carried { program, reader, writer, carrying, _link: acceptor }
}

/// A flow that the host has let begin.
async fn begun() -> Carried {
    let mut carried = asked().await;
    carried.writer.send(&FlowReply::Connected).await.unwrap();
    carried
}

impl Carried {
    /// The next message, as an owned one.
    async fn next(&mut self) -> Option<Message> {
        let message = timeout(STUCK, self.reader.receive::<Flow<'_>>()).await.expect("a message").unwrap()?;
        Some(match message {
            Flow::Data(data) => Message::Data(data.to_vec()),
            Flow::Credit { bytes } => Message::Credit(bytes),
            Flow::End => Message::End,
            Flow::Reset => Message::Reset,
        })
    }

    async fn over(self) {
        timeout(STUCK, self.carrying).await.expect("the flow's end").unwrap();
    }
}

#[derive(Debug, Eq, PartialEq)]
enum Message {
    Data(Vec<u8>),
    Credit(u32),
    End,
    Reset,
}

fn was_reset<T: std::fmt::Debug>(result: io::Result<T>) {
    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn an_end_of_one_direction_leaves_the_other_open() {
    let mut carried = begun().await;
    carried.program.write_all(b"question").await.unwrap();
    carried.program.shutdown().await.unwrap();
    assert_eq!(carried.next().await, Some(Message::Data(b"question".to_vec())));
    assert_eq!(carried.next().await, Some(Message::End));
    carried.writer.send(&Flow::Data(b"answer")).await.unwrap();
    carried.writer.send(&Flow::End).await.unwrap();
    let mut answer = Vec::new();
    carried.program.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"answer");
    assert_eq!(carried.next().await, None, "the stream's clean end");
    carried.over().await;
}

#[tokio::test]
async fn the_hosts_end_first_leaves_the_program_writing() {
    let mut carried = begun().await;
    carried.writer.send(&Flow::End).await.unwrap();
    assert_eq!(carried.program.read(&mut [0]).await.unwrap(), 0);
    carried.program.write_all(b"more").await.unwrap();
    assert_eq!(carried.next().await, Some(Message::Data(b"more".to_vec())));
    carried.program.shutdown().await.unwrap();
    assert_eq!(carried.next().await, Some(Message::End));
    assert_eq!(carried.next().await, None);
    carried.over().await;
}

#[tokio::test]
async fn resets_are_carried_as_resets_both_ways() {
    let mut carried = begun().await;
    carried.writer.send(&Flow::Reset).await.unwrap();
    was_reset(carried.program.read(&mut [0]).await);
    carried.over().await;

    let mut carried = begun().await;
    reset(std::mem::replace(&mut carried.program, loopback().await));
    assert_eq!(carried.next().await, Some(Message::Reset));
    carried.over().await;
}

/// Some connection to put in another's place.
async fn loopback() -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    TcpStream::connect(listener.local_addr().unwrap()).await.unwrap()
}

#[tokio::test]
async fn a_stream_that_is_cut_and_a_refusal_are_resets_to_the_program() {
    let Carried { mut program, reader, writer, carrying, _link } = begun().await;
    drop((reader, writer));
    was_reset(program.read(&mut [0]).await);
    timeout(STUCK, carrying).await.unwrap().unwrap();

    let mut carried = asked().await;
    carried.writer.send(&FlowReply::Refused { reason: Refusal::Policy }).await.unwrap();
    was_reset(carried.program.read(&mut [0]).await);
    carried.over().await;
}

#[tokio::test]
async fn a_program_that_goes_while_it_waits_leaves_nothing() {
    let mut carried = asked().await;
    reset(std::mem::replace(&mut carried.program, loopback().await));
    assert_eq!(carried.next().await, None);
    carried.over().await;
}

#[tokio::test]
async fn a_program_that_goes_under_a_host_that_grants_nothing_is_noticed() {
    let mut carried = begun().await;
    let flood = vec![7; 1024 * 1024];
    let _some = carried.program.try_write(&flood).unwrap();
    assert_eq!(carried.next().await, Some(Message::Data(vec![7; FLOW_CREDIT_BYTES as usize])));
    reset(std::mem::replace(&mut carried.program, loopback().await));
    assert_eq!(carried.next().await, Some(Message::Reset), "no byte above the credit, and the reset");
    carried.over().await;
}
