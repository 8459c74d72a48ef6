// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Tests of a flow between a program's connection and a real link. The test acts as the program and as the host.

use std::io;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UnixStream},
    task::JoinHandle,
};
use waggle_link::{Acceptor, Opener, Past, answer, await_dial, dial};
use waggle_protocol::{
    Link,
    egress::{Address, FLOW_CREDIT_BYTES, Refusal},
};

use super::*;
use crate::network::{link, sockets::reset};

/// Timeout of a step. Steps need less than a second, so a step that reaches the timeout hangs.
const STUCK: Duration = Duration::from_secs(10);

const TO: ([u8; 4], u16) = ([192, 0, 2, 1], 443);

/// The program's end of a connection, the host's end of its flow, and the task that carries data between them.
struct Carried {
    program: TcpStream,
    reader: Reader,
    writer: Writer,
    carrying: JoinHandle<()>,
    _link: Acceptor,
}

/// Opens a flow. As the host, reads its request but does not answer it.
async fn requested() -> Carried {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let program = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (tcp, _) = listener.accept().await.unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (sender, link) = link::handle();
    let answered = async { answer(await_dial(theirs, Past::None).await.unwrap(), Link::Egress).await };
    let (theirs, ours) = tokio::join!(answered, dial(ours, Past::None, Link::Egress));
    sender.send_replace(Some(Opener::start(ours.unwrap(), Link::Egress)));
    let mut acceptor = Acceptor::start(theirs.unwrap(), Link::Egress);
    let carrying = tokio::spawn(async move {
        carry(tcp, SocketAddr::from(TO), &link, &GrantPool::default()).await;
        drop(sender);
    });
    let stream = timeout(STUCK, acceptor.accept()).await.unwrap().unwrap();
    let (mut reader, writer) = halves(stream, EGRESS_FRAME_BYTES_MAX);
    let request = timeout(STUCK, reader.receive::<EgressRequest<'_>>()).await.unwrap().unwrap();
    assert_eq!(request, Some(EgressRequest::Connect { address: Address::V4(TO.0), port: TO.1 }));
    Carried { program, reader, writer, carrying, _link: acceptor }
}

/// Opens a flow, and accepts it as the host.
async fn connected() -> Carried {
    let mut carried = requested().await;
    carried.writer.send(&FlowReply::Connected).await.unwrap();
    carried
}

impl Carried {
    /// Receives the next message.
    async fn next(&mut self) -> Option<Message> {
        let message = timeout(STUCK, self.reader.receive::<Flow<'_>>()).await.expect("no message in time").unwrap()?;
        Some(match message {
            Flow::Data(data) => Message::Data(data.to_vec()),
            Flow::Credit { bytes } => Message::Credit(bytes),
            Flow::End => Message::End,
            Flow::Reset => Message::Reset,
        })
    }

    async fn ended(self) {
        timeout(STUCK, self.carrying).await.expect("the flow did not end in time").unwrap();
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
async fn end_of_one_direction_leaves_the_other_open() {
    let mut carried = connected().await;
    carried.program.write_all(b"question").await.unwrap();
    carried.program.shutdown().await.unwrap();
    assert_eq!(carried.next().await, Some(Message::Data(b"question".to_vec())));
    assert_eq!(carried.next().await, Some(Message::End));
    carried.writer.send(&Flow::Data(b"answer")).await.unwrap();
    carried.writer.send(&Flow::End).await.unwrap();
    let mut answer = Vec::new();
    carried.program.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"answer");
    assert_eq!(carried.next().await, None, "the stream must end without another message");
    carried.ended().await;
}

#[tokio::test]
async fn program_can_write_after_the_host_ends_its_direction() {
    let mut carried = connected().await;
    carried.writer.send(&Flow::End).await.unwrap();
    assert_eq!(carried.program.read(&mut [0]).await.unwrap(), 0);
    carried.program.write_all(b"more").await.unwrap();
    assert_eq!(carried.next().await, Some(Message::Data(b"more".to_vec())));
    carried.program.shutdown().await.unwrap();
    assert_eq!(carried.next().await, Some(Message::End));
    assert_eq!(carried.next().await, None);
    carried.ended().await;
}

#[tokio::test]
async fn resets_are_carried_in_both_directions() {
    let mut carried = connected().await;
    carried.writer.send(&Flow::Reset).await.unwrap();
    was_reset(carried.program.read(&mut [0]).await);
    carried.ended().await;

    let mut carried = connected().await;
    reset(std::mem::replace(&mut carried.program, loopback().await));
    assert_eq!(carried.next().await, Some(Message::Reset));
    carried.ended().await;
}

/// Opens a placeholder for a connection that a test moves out of its struct.
async fn loopback() -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    TcpStream::connect(listener.local_addr().unwrap()).await.unwrap()
}

#[tokio::test]
async fn dropped_stream_and_refusal_reset_the_connection() {
    let Carried { mut program, reader, writer, carrying, _link } = connected().await;
    drop((reader, writer));
    was_reset(program.read(&mut [0]).await);
    timeout(STUCK, carrying).await.unwrap().unwrap();

    let mut carried = requested().await;
    carried.writer.send(&FlowReply::Refused { reason: Refusal::Policy }).await.unwrap();
    was_reset(carried.program.read(&mut [0]).await);
    carried.ended().await;
}

#[tokio::test]
async fn stream_ends_if_the_program_resets_before_the_answer() {
    let mut carried = requested().await;
    reset(std::mem::replace(&mut carried.program, loopback().await));
    assert_eq!(carried.next().await, None);
    carried.ended().await;
}

#[tokio::test]
async fn reset_by_the_program_is_sent_without_credit() {
    let mut carried = connected().await;
    let flood = vec![7; 1024 * 1024];
    let _some = carried.program.try_write(&flood).unwrap();
    assert_eq!(carried.next().await, Some(Message::Data(vec![7; FLOW_CREDIT_BYTES as usize])));
    reset(std::mem::replace(&mut carried.program, loopback().await));
    assert_eq!(carried.next().await, Some(Message::Reset), "the reset must follow, without bytes beyond the credit");
    carried.ended().await;
}
