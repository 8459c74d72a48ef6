// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The worker's side of its socket: sends and receives the protocol's frames with blocking calls.

use std::{
    io::{self, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
};

use waggle_protocol::{
    FRAME_BYTES_MAX, Fault, FaultKind, Input, Reply, Request,
    frame::{self, PREFIX_BYTES},
};

use crate::fault::fault;

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

    /// Receives the call's first message.
    pub(super) fn request(&mut self) -> Result<Request, Fault> {
        self.receive()?;
        frame::decode(&self.incoming).map_err(bad)
    }

    /// Receives the next bytes of the file. Returns an error if the host has cancelled the call or is gone.
    pub(super) fn data(&mut self) -> Result<&[u8], Fault> {
        self.receive()?;
        match frame::decode(&self.incoming) {
            Ok(Input::Data(bytes)) => Ok(bytes),
            Ok(Input::Cancel) => Err(bad("the call was cancelled")),
            Err(source) => Err(bad(source)),
        }
    }

    pub(super) fn reply(&mut self, reply: &Reply<'_>) -> Result<(), Fault> {
        self.outgoing.clear();
        frame::encode(reply, &mut self.outgoing).map_err(bad)?;
        self.socket.write_all(&self.outgoing).map_err(broken)
    }

    /// Shuts down the sending side, and reads until the agent closes its end. Closing a socket with unread bytes would
    /// reset the connection, and the agent could lose the last reply.
    pub(super) fn close(&mut self) {
        if self.socket.shutdown(Shutdown::Write).is_ok() {
            drop(io::copy(&mut self.socket, &mut io::sink()));
        }
    }

    fn receive(&mut self) -> Result<(), Fault> {
        let mut prefix = [0; PREFIX_BYTES];
        self.socket.read_exact(&mut prefix).map_err(broken)?;
        let bytes = frame::body_bytes(prefix, FRAME_BYTES_MAX).map_err(bad)?;
        self.incoming.resize(bytes, 0);
        self.socket.read_exact(&mut self.incoming).map_err(broken)
    }
}

/// An error while the content of a file or folder is sent: an error of the file or an error of the call's stream.
pub(super) enum StreamFault {
    File(io::Error),
    Stream(Fault),
}

impl StreamFault {
    /// Converts the error to the call's answer. `failed` converts an error of the file.
    pub(super) fn into_fault(self, failed: impl Fn(io::Error) -> Fault) -> Fault {
        match self {
            Self::File(source) => failed(source),
            Self::Stream(fault) => fault,
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is for map_err")]
fn bad(source: impl ToString) -> Fault {
    fault(FaultKind::BadRequest, source.to_string())
}

#[expect(clippy::needless_pass_by_value, reason = "it is for map_err")]
fn broken(source: io::Error) -> Fault {
    fault(FaultKind::Other, format!("lost the call's stream: {source}"))
}
