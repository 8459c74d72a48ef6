// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Guests that never get as far as a call.

use std::{error::Error, time::Duration};

use tokio::{io::AsyncWriteExt, net::UnixStream};
use waggle::agent::{self, AgentClient, ConnectFault};
use waggle_protocol::{Link, handshake};

use crate::{
    bounded,
    guest::{PATIENCE, framed, hello},
};

/// What comes of a guest whose first words are these, written with a pause after each piece, and that then stalls.
async fn connect(pieces: &[&[u8]], pause: Duration) -> Result<AgentClient, ConnectFault> {
    let (near, mut far) = UnixStream::pair().unwrap();
    let talking = async {
        for piece in pieces {
            // The host may have left.
            let _written = far.write_all(piece).await;
            tokio::time::sleep(pause).await;
        }
        std::future::pending().await
    };
    tokio::select! {
        connected = agent::connect(near, PATIENCE) => connected,
        never = talking => never,
    }
}

fn cause(fault: &ConnectFault) -> String {
    fault.source().map(ToString::to_string).unwrap_or_default()
}

#[tokio::test]
async fn a_guest_that_never_says_hello_is_given_up() {
    bounded(async {
        let fault = connect(&[], Duration::ZERO).await.unwrap_err();
        assert_eq!(fault.to_string(), "the guest agent did not say hello within 0.5 s");
        let fault = connect(&[&handshake::preamble(Link::Call)], Duration::ZERO).await.unwrap_err();
        assert!(matches!(fault, ConnectFault::Silent { .. }), "{fault}");
    })
    .await;
}

#[tokio::test]
async fn a_guest_that_says_hello_for_ever_is_given_up() {
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
async fn a_hello_of_4_gib_is_refused_by_its_length() {
    bounded(async {
        let fault = connect(&[&handshake::preamble(Link::Call), &[0xff; 4]], Duration::ZERO).await.unwrap_err();
        assert!(matches!(fault, ConnectFault::Hello { .. }), "{fault}");
    })
    .await;
}

#[tokio::test]
async fn a_hello_with_control_characters_or_of_nonsense_is_refused() {
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
