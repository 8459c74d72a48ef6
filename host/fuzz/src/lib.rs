// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Generated traffic of a link: yamux frames that contain messages, in records. Frames and messages may be truncated or corrupted.

#![expect(dead_code, reason = "only parts of the host's modules are under test")]

#[path = "../../src/domain"]
pub mod domain {
    pub mod call_fault;
    pub mod capabilities;
    pub mod command;
    pub mod egress;
    pub mod environment;
    pub mod environment_id;
    pub mod file;
    pub mod guest_path;
    pub mod lifecycle;
    pub mod machine;
    pub mod output;
    pub mod package_name;
    pub mod principal;
    pub mod runtime;
    pub mod stage;
    pub mod utf8;
}

#[path = "../../src/files"]
mod files {
    pub(crate) mod secret_file;
}

#[path = "../../src"]
mod host {
    pub mod agent;
    pub mod network;
    pub(crate) mod printable;
}

pub(crate) use self::host::printable;
pub use self::host::{agent, network};

use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use waggle_link::{Past, begin};
use waggle_protocol::frame;

/// Highest id of a generated stream. It is low, so that the ids often match open streams.
const STREAMS: u32 = 8;

/// One piece of traffic.
#[derive(Debug)]
enum Piece {
    /// A message in its frame, on a stream.
    Message { stream: u32, flags: u16, bytes: Vec<u8> },
    /// Arbitrary bytes on a stream.
    Data { stream: u32, flags: u16, bytes: Vec<u8> },
    /// A yamux frame without a body.
    Bare { kind: u8, stream: u32, flags: u16, length: u32 },
    /// Arbitrary bytes without a header.
    Raw(Vec<u8>),
}

/// Generates the bytes of a peer that sends messages of the type `M`.
///
/// # Errors
/// The input is used up.
pub fn traffic<'a, M>(input: &mut Unstructured<'a>) -> arbitrary::Result<Vec<u8>>
where
    M: Arbitrary<'a> + serde::Serialize,
{
    let mut bytes = Vec::new();
    while !input.is_empty() && bytes.len() < 1 << 20 {
        piece::<M>(input)?.append_to(&mut bytes);
    }
    Ok(bytes)
}

/// Begins the link as a guest, sends the bytes in records, discards the responses, and closes the stream.
pub async fn send_in_records(stream: DuplexStream, bytes: &[u8]) {
    // The host may close the stream because of a timeout.
    if let Ok(records) = begin(stream, Past::None).await {
        send(records, bytes).await;
    }
}

/// Sends the bytes, discards the responses, and closes the stream.
pub async fn send<S: AsyncRead + AsyncWrite>(stream: S, bytes: &[u8]) {
    let (mut reading, mut writing) = tokio::io::split(stream);
    let reads = async {
        let mut sink = [0; 4096];
        while reading.read(&mut sink).await.is_ok_and(|read| read > 0) {}
    };
    let writes = async {
        // A pause after each part gives the host time to respond and to open streams.
        for part in bytes.chunks(256) {
            tokio::time::sleep(Duration::from_millis(1)).await;
            if writing.write_all(part).await.is_err() || writing.flush().await.is_err() {
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    tokio::select! {
        () = reads => {}
        () = writes => {}
    }
}

fn piece<'a, M: Arbitrary<'a> + serde::Serialize>(input: &mut Unstructured<'a>) -> arbitrary::Result<Piece> {
    let stream = input.int_in_range(0..=STREAMS)?;
    // Half of the frames have arbitrary flags: SYN, ACK, FIN and RST.
    let flags = if input.ratio(1, 2)? { 0 } else { input.int_in_range(0..=15)? };
    Ok(match input.int_in_range(0..=9)? {
        0..=5 => {
            let mut bytes = Vec::new();
            // A message that does not fit into a frame is omitted.
            drop(frame::encode(&M::arbitrary(input)?, &mut bytes));
            Piece::Message { stream, flags, bytes }
        }
        6 => Piece::Data { stream, flags, bytes: Vec::arbitrary(input)? },
        7 | 8 => Piece::Bare { kind: input.int_in_range(0..=4)?, stream, flags, length: u32::arbitrary(input)? },
        _ => Piece::Raw(Vec::arbitrary(input)?),
    })
}

impl Piece {
    fn append_to(&self, all: &mut Vec<u8>) {
        match self {
            Self::Message { stream, flags, bytes } | Self::Data { stream, flags, bytes } => {
                for part in bytes.chunks(16 * 1024) {
                    all.extend(header(0, *flags, *stream, u32::try_from(part.len()).unwrap_or(0)));
                    all.extend_from_slice(part);
                }
            }
            Self::Bare { kind, stream, flags, length } => all.extend(header(*kind, *flags, *stream, *length)),
            Self::Raw(bytes) => all.extend_from_slice(bytes),
        }
    }
}

fn header(kind: u8, flags: u16, stream: u32, length: u32) -> [u8; 12] {
    let [f0, f1] = flags.to_be_bytes();
    let [s0, s1, s2, s3] = stream.to_be_bytes();
    let [l0, l1, l2, l3] = length.to_be_bytes();
    [0, kind, f0, f1, s0, s1, s2, s3, l0, l1, l2, l3]
}
