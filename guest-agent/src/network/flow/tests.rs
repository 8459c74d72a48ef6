// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Tests of a flow between a program's connection and a real link. The test acts as the program and as the host.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UnixStream},
    task::JoinHandle,
    time::timeout,
};
use waggle_link::{Acceptor, Opener, Past, answer, await_dial, dial};
use waggle_protocol::{Link, egress::FLOW_CREDIT_BYTES};

use super::*;

/// Timeout of a step. Steps need less than a second, so a step that reaches the timeout hangs.
const STUCK: Duration = Duration::from_secs(10);

/// The program's end of a connection, the host's end of its flow, and the task that carries data between them.
struct Carried {
    program: TcpStream,
    stream: Stream,
    carrying: JoinHandle<()>,
    _link: Acceptor,
}

/// Opens a flow between a program's connection and the host's end of a stream.
async fn connected() -> Carried {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let program = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (tcp, _) = listener.accept().await.unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let answered = async { answer(await_dial(theirs, Past::None).await.unwrap(), Link::Egress).await };
    let (theirs, ours) = tokio::join!(answered, dial(ours, Past::None, Link::Egress));
    let opener = Opener::start(ours.unwrap(), Link::Egress);
    let mut acceptor = Acceptor::start(theirs.unwrap(), Link::Egress);
    let mut stream = opener.open().await.unwrap();
    // The host sees a stream with its first data.
    stream.write_all(b"!").await.unwrap();
    let carrying = tokio::spawn(async move {
        carry(tcp, stream).await;
        drop(opener);
    });
    let mut stream = timeout(STUCK, acceptor.accept()).await.unwrap().unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'!');
    Carried { program, stream, carrying, _link: acceptor }
}

impl Carried {
    /// Expects this data next.
    async fn receives(&mut self, expected: &[u8]) {
        let mut data = vec![0; expected.len()];
        timeout(STUCK, self.stream.read_exact(&mut data)).await.expect("no data in time").unwrap();
        assert!(data == expected);
    }

    /// Expects the end of the data next.
    async fn receives_end(&mut self) {
        let read = timeout(STUCK, self.stream.read(&mut [0])).await.expect("no end in time");
        assert_eq!(read.unwrap(), 0);
    }

    /// Expects a reset next.
    async fn receives_reset(&mut self) {
        was_reset(timeout(STUCK, self.stream.read(&mut [0])).await.expect("no reset in time"));
    }

    async fn ended(self) {
        timeout(STUCK, self.carrying).await.expect("the flow did not end in time").unwrap();
    }
}

fn was_reset<T: std::fmt::Debug>(result: io::Result<T>) {
    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn end_of_one_direction_leaves_the_other_open() {
    let mut carried = connected().await;
    carried.program.write_all(b"question").await.unwrap();
    carried.program.shutdown().await.unwrap();
    carried.receives(b"question").await;
    carried.receives_end().await;
    carried.stream.write_all(b"answer").await.unwrap();
    carried.stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    carried.program.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"answer");
    carried.ended().await;
}

#[tokio::test]
async fn program_can_write_after_the_host_ends_its_direction() {
    let mut carried = connected().await;
    carried.stream.shutdown().await.unwrap();
    assert_eq!(carried.program.read(&mut [0]).await.unwrap(), 0);
    carried.program.write_all(b"more").await.unwrap();
    carried.receives(b"more").await;
    carried.program.shutdown().await.unwrap();
    carried.receives_end().await;
    carried.ended().await;
}

#[tokio::test]
async fn resets_are_carried_in_both_directions() {
    let Carried { mut program, stream, carrying, _link } = connected().await;
    drop(stream);
    was_reset(program.read(&mut [0]).await);
    timeout(STUCK, carrying).await.unwrap().unwrap();

    let mut carried = connected().await;
    reset(std::mem::replace(&mut carried.program, loopback().await));
    carried.receives_reset().await;
    carried.ended().await;
}

/// Opens a placeholder for a connection that a test moves out of its struct.
async fn loopback() -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    TcpStream::connect(listener.local_addr().unwrap()).await.unwrap()
}

#[tokio::test]
async fn reset_by_the_program_is_sent_without_credit() {
    let mut carried = connected().await;
    let flood = vec![7; 1024 * 1024];
    let _some = carried.program.try_write(&flood).unwrap();
    // Reading less than half of the credit earns no new credit.
    carried.receives(&vec![7; FLOW_CREDIT_BYTES as usize / 4]).await;
    reset(std::mem::replace(&mut carried.program, loopback().await));
    timeout(STUCK, carried.carrying).await.expect("the flow did not end in time").unwrap();
    let mut rest = Vec::new();
    was_reset(timeout(STUCK, carried.stream.read_to_end(&mut rest)).await.expect("no reset in time"));
    assert!(rest.len() <= FLOW_CREDIT_BYTES as usize * 3 / 4, "received {} bytes beyond the credit", rest.len());
}
