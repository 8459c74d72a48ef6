// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Guests that fail before the first call.

use std::{error::Error, time::Duration};

use tokio::{io::AsyncWriteExt, net::UnixStream};
use waggle::agent::{self, AgentClient, ConnectFault};
use waggle_link::Past;
use waggle_protocol::{Link, handshake};

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
        connected = agent::connect(near, Past::None, TIMEOUTS) => connected,
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
        assert_eq!(fault.to_string(), "the guest agent sent no hello within 0.5 s");
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
