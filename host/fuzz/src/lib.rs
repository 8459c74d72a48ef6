// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Generated traffic of a link: frames that contain messages, in records. Frames and messages may be truncated or
//! corrupted.

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
    pub mod machine_size;
    pub mod output;
    pub mod package_name;
    pub mod principal;
    pub mod runtime;
    pub mod stage;
    pub mod start_reason;
    pub mod utf8;
    pub mod variables;
}

#[path = "../../src/files"]
mod files {
    pub(crate) mod secret_file;
}

#[path = "../../src"]
mod host {
    pub mod agent;
    pub mod network;
}

pub use self::host::{agent, network};

use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use waggle_link::{Past, begin};
use waggle_protocol::frame;

/// Highest number of a generated stream. It is low, so that the numbers often match open streams.
const STREAMS: u32 = 4;

/// The kinds of frames.
const OPEN: u8 = 1;
const DATA: u8 = 2;
const CREDIT: u8 = 3;
const CLOSE: u8 = 5;

/// One piece of traffic.
#[derive(Debug)]
enum Piece {
    /// A message in its frame, or arbitrary bytes, on a stream.
    Data { stream: u32, bytes: Vec<u8> },
    /// A frame without a body.
    Bare { kind: u8, stream: u32, value: u32 },
    /// Arbitrary bytes without a header.
    Raw(Vec<u8>),
}

/// Generates the bytes of a peer that sends messages of the type `M`. A peer that `opens` streams mostly opens a stream
/// before it uses the stream.
///
/// # Errors
/// The input is used up.
pub fn traffic<'a, M>(input: &mut Unstructured<'a>, opens: bool) -> arbitrary::Result<Vec<u8>>
where
    M: Arbitrary<'a> + serde::Serialize,
{
    let mut bytes = Vec::new();
    let mut opened = [false; STREAMS as usize + 1];
    while !input.is_empty() && bytes.len() < 1 << 20 {
        let piece = piece::<M>(input)?;
        if let (Piece::Data { stream, .. }, true) = (&piece, opens)
            && !std::mem::replace(&mut opened[*stream as usize], true)
            && !input.ratio(1, 20)?
        {
            bytes.extend(header(OPEN, 0, *stream));
        }
        piece.append_to(&mut bytes);
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
    Ok(match input.int_in_range(0..=19)? {
        0..=11 => {
            let mut bytes = Vec::new();
            // A message that does not fit into a frame is omitted.
            drop(frame::encode(&M::arbitrary(input)?, &mut bytes));
            Piece::Data { stream, bytes }
        }
        12..=14 => Piece::Data { stream, bytes: Vec::arbitrary(input)? },
        15 => Piece::Bare { kind: CREDIT, stream, value: input.int_in_range(2048..=200_000)? },
        16 | 17 => Piece::Bare { kind: input.int_in_range(OPEN..=CLOSE)?, stream, value: 0 },
        18 => Piece::Bare { kind: input.arbitrary()?, stream: input.arbitrary()?, value: input.arbitrary()? },
        _ => Piece::Raw(Vec::arbitrary(input)?),
    })
}

impl Piece {
    fn append_to(&self, all: &mut Vec<u8>) {
        match self {
            Self::Data { stream, bytes } => {
                for part in bytes.chunks(16 * 1024) {
                    all.extend(header(DATA, u32::try_from(part.len()).unwrap_or(0), *stream));
                    all.extend_from_slice(part);
                }
            }
            Self::Bare { kind, stream, value } => all.extend(header(*kind, *value, *stream)),
            Self::Raw(bytes) => all.extend_from_slice(bytes),
        }
    }
}

fn header(kind: u8, value: u32, stream: u32) -> [u8; 8] {
    let [v0, v1, v2, _] = value.to_le_bytes();
    let [s0, s1, s2, s3] = stream.to_le_bytes();
    [kind, v0, v1, v2, s0, s1, s2, s3]
}
