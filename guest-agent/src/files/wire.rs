// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The worker's side of its socket: the protocol's frames, blocking.

use std::{
    io::{self, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
};

use serde::{Serialize, de::DeserializeOwned};
use waggle_protocol::{
    FRAME_BYTES_MAX, Fault, FaultKind, Input, Reply, Request,
    frame::{self, PREFIX_BYTES},
};

/// Reads the call's messages and writes its replies.
pub(super) struct Wire {
    socket: UnixStream,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
}

impl Wire {
    pub(super) fn new(socket: UnixStream) -> Self {
        Self { socket, incoming: Vec::new(), outgoing: Vec::new() }
    }

    /// The call's first message.
    pub(super) fn request(&mut self) -> Result<Request, Fault> {
        self.receive()?;
        decode(&self.incoming)
    }

    /// The next bytes of the file; the host cancelling or leaving is a fault.
    pub(super) fn data(&mut self) -> Result<&[u8], Fault> {
        self.receive()?;
        match frame::decode(&self.incoming) {
            Ok(Input::Data(bytes)) => Ok(bytes),
            Ok(Input::Cancel) => Err(bad("the call was cancelled")),
            Err(fault) => Err(bad(&fault.to_string())),
        }
    }

    /// Sends one reply.
    pub(super) fn reply(&mut self, reply: &Reply<'_>) -> Result<(), Fault> {
        self.outgoing.clear();
        encode(reply, &mut self.outgoing)?;
        self.socket.write_all(&self.outgoing).map_err(|source| broken(&source))
    }

    /// Ends the replies, and takes in what the host still sends: closing a socket with unread bytes in it would break
    /// it on the agent's side before the last reply is read there. The agent closes the other end in return.
    pub(super) fn close(&mut self) {
        if self.socket.shutdown(Shutdown::Write).is_ok() {
            drop(io::copy(&mut self.socket, &mut io::sink()));
        }
    }

    fn receive(&mut self) -> Result<(), Fault> {
        let mut prefix = [0; PREFIX_BYTES];
        self.socket.read_exact(&mut prefix).map_err(|source| broken(&source))?;
        let bytes = frame::body_bytes(prefix, FRAME_BYTES_MAX).map_err(|fault| bad(&fault.to_string()))?;
        self.incoming.resize(bytes, 0);
        self.socket.read_exact(&mut self.incoming).map_err(|source| broken(&source))
    }
}

/// What came in the way of sending what is in a file or a folder: that, or the call's stream.
pub(super) enum StreamFault {
    File(io::Error),
    Stream(Fault),
}

impl StreamFault {
    /// As the call's answer; `failed` says what was to be done with the file.
    pub(super) fn of(self, failed: impl Fn(io::Error) -> Fault) -> Fault {
        match self {
            Self::File(source) => failed(source),
            Self::Stream(fault) => fault,
        }
    }
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, Fault> {
    frame::decode(body).map_err(|fault| bad(&fault.to_string()))
}

fn encode<T: Serialize>(message: &T, buffer: &mut Vec<u8>) -> Result<(), Fault> {
    frame::encode(message, buffer).map_err(|fault| bad(&fault.to_string()))
}

fn bad(message: &str) -> Fault {
    Fault { kind: FaultKind::BadRequest, message: message.to_owned() }
}

fn broken(source: &io::Error) -> Fault {
    Fault { kind: FaultKind::Other, message: format!("lost the call's stream: {source}") }
}
