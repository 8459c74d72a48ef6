// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Guests that fail before the first call.

use std::{error::Error, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};
use waggle::agent::{self, AgentClient, ConnectFault};
use waggle_link::{FrameReader, FrameWriter, Past, dial};
use waggle_protocol::{Link, Welcome, handshake};

use crate::{
    bounded,
    guest::{TIMEOUTS, framed, hello},
};

/// Connects to a guest that dials, writes these pieces, with a pause after each piece, and then stalls.
async fn connect(pieces: &[&[u8]], pause: Duration) -> Result<AgentClient, ConnectFault> {
    let (near, far) = UnixStream::pair().unwrap();
    let writing = async {
        let mut far = waggle_link::begin(far, Past::None).await.unwrap();
        for piece in pieces {
            // The host may have closed the connection.
            let _written = far.write_all(piece).await;
            let _flushed = far.flush().await;
            tokio::time::sleep(pause).await;
        }
        std::future::pending().await
    };
    tokio::select! {
        connected = agent::connect(near, Past::None, "machine", TIMEOUTS) => connected,
        never = writing => never,
    }
}

fn cause(fault: &ConnectFault) -> String {
    fault.source().map(ToString::to_string).unwrap_or_default()
}

#[tokio::test]
async fn guest_without_a_hello_times_out() {
    bounded(async {
        let fault = connect(&[], Duration::ZERO).await.unwrap_err();
        assert_eq!(fault.to_string(), "the guest agent did not complete its greeting within 0.5 s");
        let fault = connect(&[&handshake::preamble(Link::Call)], Duration::ZERO).await.unwrap_err();
        assert!(matches!(fault, ConnectFault::Silent { .. }), "{fault}");
    })
    .await;
}

#[tokio::test]
async fn endless_hello_times_out() {
    bounded(async {
        let mut words = handshake::preamble(Link::Call).to_vec();
        words.extend(framed(&hello(&"a".repeat(4000))));
        let pieces: Vec<_> = words.chunks(1).collect();
        let fault = connect(&pieces, Duration::from_millis(20)).await.unwrap_err();
        assert!(matches!(fault, ConnectFault::Silent { .. }), "{fault}");
    })
    .await;
}

#[tokio::test]
async fn rejects_a_4_gib_hello_by_its_length() {
    bounded(async {
        let fault = connect(&[&handshake::preamble(Link::Call), &[0xff; 4]], Duration::ZERO).await.unwrap_err();
        assert!(matches!(fault, ConnectFault::Hello { .. }), "{fault}");
    })
    .await;
}

#[tokio::test]
async fn rejects_an_invalid_hello() {
    bounded(async {
        let preamble = handshake::preamble(Link::Call);
        let fault = connect(&[&preamble, &framed(&hello("\x1b[2J"))], Duration::ZERO).await.unwrap_err();
        assert!(matches!(fault, ConnectFault::Excessive), "{fault}");
        let fault = connect(&[&preamble, &[3, 0, 0, 0, 9, 9, 9]], Duration::ZERO).await.unwrap_err();
        assert_eq!(cause(&fault), "received an invalid frame");
        let fault = connect(&[b"SSH-2.0-OpenSSH_9.2\r\n"], Duration::ZERO).await.unwrap_err();
        assert_eq!(cause(&fault), "the link was refused");
    })
    .await;
}

#[tokio::test]
async fn guest_that_does_not_answer_the_welcome_times_out() {
    bounded(async {
        let greeting = [&handshake::preamble(Link::Call)[..], &framed(&hello("hostile"))].concat();
        let fault = connect(&[&greeting], Duration::ZERO).await.unwrap_err();
        assert!(matches!(fault, ConnectFault::Silent { .. }), "{fault}");
        let fault = connect(&[&greeting, &[1, 0, 0, 0, 0]], Duration::ZERO).await.unwrap_err();
        assert_eq!(fault.to_string(), "failed to read the guest agent's answer to the welcome");
    })
    .await;
}

/// Receives a welcome, and leaves without an answer.
async fn welcome() -> Welcome {
    let (near, far) = UnixStream::pair().unwrap();
    let host = tokio::spawn(agent::connect(near, Past::None, "0123abcd", TIMEOUTS));
    let mut far = dial(far, Past::None, Link::Call).await.unwrap();
    FrameWriter::new(&mut far).send(&hello("hostile")).await.unwrap();
    let welcome = FrameReader::new(&mut far).receive::<Welcome>().await.unwrap().unwrap();
    drop(far);
    let fault = host.await.unwrap().unwrap_err();
    assert_eq!(fault.to_string(), "the guest agent could not apply the welcome");
    welcome
}

#[tokio::test]
async fn each_welcome_has_new_random_bytes() {
    bounded(async {
        let (one, other) = (welcome().await, welcome().await);
        assert_eq!((one.hostname.as_str(), other.hostname.as_str()), ("0123abcd", "0123abcd"));
        assert!(one.seed != other.seed && one.seed.0 != [0; 32] && other.seed.0 != [0; 32]);
        // The bytes are secret.
        assert!(format!("{one:?}").contains("seed: Seed(..)"));
    })
    .await;
}

#[tokio::test]
async fn error_for_another_version_names_both_versions() {
    bounded(async {
        let (near, far) = UnixStream::pair().unwrap();
        let mut preamble = handshake::preamble(Link::Call);
        preamble[8] = 99;
        let greeting = async {
            let mut far = waggle_link::begin(far, Past::None).await.unwrap();
            far.write_all(&preamble).await.unwrap();
            far.flush().await.unwrap();
            far
        };
        let (connected, mut far) = tokio::join!(agent::connect(near, Past::None, "machine", TIMEOUTS), greeting);
        let fault = connected.unwrap_err();
        let source = fault.source().and_then(Error::source).unwrap().to_string();
        let version = waggle_protocol::VERSION;
        assert_eq!(source, format!("peer has protocol version 99; must be {version}"));
        let mut answer = [0; 16];
        far.read_exact(&mut answer).await.unwrap();
        assert_eq!((u32::from(answer[8]), answer[12]), (version, 1));
    })
    .await;
}
