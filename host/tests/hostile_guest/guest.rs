// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! A guest that sends arbitrary bytes, such as hand-made frames, on a real socket.

use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt::SndBuf};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};
use waggle::agent::{self, AgentClient, Timeouts};
use waggle_link::{FrameReader, FrameWriter, Past, Records, dial};
use waggle_protocol::{Hello, Link, Origin, Ready, Reply, Welcome, frame};

/// The kinds of frames.
pub(crate) const OPEN: u8 = 1;
pub(crate) const DATA: u8 = 2;
pub(crate) const CREDIT: u8 = 3;
pub(crate) const END: u8 = 4;
pub(crate) const CLOSE: u8 = 5;

/// Timeouts that keep tests short, and that are long enough for a loaded machine.
pub(crate) const TIMEOUTS: Timeouts = Timeouts {
    hello: Duration::from_millis(500),
    clock_interval: Duration::from_secs(60),
    control: Duration::from_millis(300),
    hold: Duration::from_secs(5),
    unanswered_max: 2,
    deadline_grace: Duration::from_millis(500),
    cancel: Duration::from_millis(500),
    file: Duration::from_millis(1000),
};

/// Initial credit of a call in bytes.
pub(crate) const CREDIT_BYTES: usize = 256 * 1024;

/// The header of a frame from the host.
pub(crate) struct Frame {
    pub(crate) kind: u8,
    /// The length of the body, or the granted credit.
    pub(crate) value: usize,
    pub(crate) stream: u32,
}

impl Frame {
    pub(crate) fn parse(header: [u8; 8]) -> Self {
        let [kind, v0, v1, v2, s0, s1, s2, s3] = header;
        let value = u32::from_le_bytes([v0, v1, v2, 0]) as usize;
        Self { kind, value, stream: u32::from_le_bytes([s0, s1, s2, s3]) }
    }
}

/// The guest's side of a link.
pub(crate) struct Guest {
    pub(crate) socket: Records<UnixStream>,
}

/// Returns a host and a guest after an honest greeting.
pub(crate) async fn greeted(timeouts: Timeouts) -> (AgentClient, Guest) {
    greeted_over(UnixStream::pair().unwrap(), timeouts).await
}

/// Like [`greeted`], but the host's socket has the smallest send buffer that Linux allows.
pub(crate) async fn greeted_narrowly(timeouts: Timeouts) -> (AgentClient, Guest) {
    let pair = UnixStream::pair().unwrap();
    setsockopt(&pair.0, SndBuf, &0).unwrap();
    greeted_over(pair, timeouts).await
}

async fn greeted_over((near, far): (UnixStream, UnixStream), timeouts: Timeouts) -> (AgentClient, Guest) {
    let guest = tokio::spawn(async move {
        let mut far = dial(far, Past::None, Link::Call).await.unwrap();
        FrameWriter::new(&mut far).send(&hello("hostile")).await.unwrap();
        FrameReader::new(&mut far).receive::<Welcome>().await.unwrap().unwrap();
        FrameWriter::new(&mut far).send(&Ready).await.unwrap();
        Guest { socket: far }
    });
    let host = agent::connect(near, Past::None, "hostile", timeouts).await.unwrap();
    (host, guest.await.unwrap())
}

pub(crate) fn hello(build: &str) -> Hello {
    Hello { origin: Origin::Host, build: build.to_owned(), programs: vec!["sh".to_owned()] }
}

/// Encodes a message in its frame.
pub(crate) fn framed<T: serde::Serialize>(message: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::encode(message, &mut bytes).unwrap();
    bytes
}

/// Builds the header of a frame.
pub(crate) fn header(kind: u8, value: usize, stream: u32) -> [u8; 8] {
    let [v0, v1, v2, ..] = value.to_le_bytes();
    let [s0, s1, s2, s3] = stream.to_le_bytes();
    [kind, v0, v1, v2, s0, s1, s2, s3]
}

impl Guest {
    /// Writes bytes; returns false if the host has closed the link.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> bool {
        self.socket.write_all(bytes).await.is_ok() && self.socket.flush().await.is_ok()
    }

    /// Waits until the host opens a stream, and returns the id of the stream.
    pub(crate) async fn next_call(&mut self) -> u32 {
        loop {
            let frame = self.frame().await.unwrap();
            if frame.kind == OPEN {
                return frame.stream;
            }
        }
    }

    /// Sends the same bytes on a stream repeatedly, as fast as the host grants credit.
    pub(crate) async fn flood_stream(&mut self, stream: u32, bytes: &[u8]) {
        self.send_each(stream, std::iter::repeat(bytes)).await;
    }

    /// Sends parts on a stream, as fast as the host grants credit. Returns early if the host has closed the link.
    pub(crate) async fn send_each(&mut self, stream: u32, parts: impl Iterator<Item: AsRef<[u8]>>) {
        let mut credit = CREDIT_BYTES;
        for part in parts {
            let bytes = part.as_ref();
            while credit < bytes.len() {
                match self.frame().await {
                    Some(Frame { kind: CREDIT, value, .. }) => credit += value,
                    Some(_) => {}
                    None => return,
                }
            }
            credit -= bytes.len();
            if !self.write(&in_stream(stream, bytes)).await {
                return;
            }
        }
    }

    /// Reads the host's next frame, or `None` at the end of the link.
    pub(crate) async fn frame(&mut self) -> Option<Frame> {
        let mut header = [0; 8];
        self.socket.read_exact(&mut header).await.ok()?;
        let frame = Frame::parse(header);
        if frame.kind == DATA {
            self.socket.read_exact(&mut vec![0; frame.value]).await.ok()?;
        }
        Some(frame)
    }

    /// Sends bytes on a stream; returns false if the host has closed the link.
    pub(crate) async fn send(&mut self, stream: u32, bytes: &[u8]) -> bool {
        self.write(&in_stream(stream, bytes)).await
    }

    /// Sends a reply on a stream; returns false if the host has closed the link.
    pub(crate) async fn reply(&mut self, stream: u32, reply: &Reply<'_>) -> bool {
        self.send(stream, &framed(reply)).await
    }

    /// Keeps the socket open and sends nothing more.
    pub(crate) async fn stall(self) -> ! {
        std::future::pending().await
    }
}

/// Builds a data frame that carries `bytes` on the stream.
pub(crate) fn in_stream(stream: u32, bytes: &[u8]) -> Vec<u8> {
    let mut frame = header(DATA, bytes.len(), stream).to_vec();
    frame.extend_from_slice(bytes);
    frame
}
