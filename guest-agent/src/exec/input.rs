// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What comes in before a command starts: its code and its stdin, each into a file.
//!
//! Stdin lies in a file so that a command that does not read it holds up nothing: the host's `Cancel` is never stuck
//! behind bytes that nobody takes.

use std::{fs::File, io, os::fd::OwnedFd, path::Path};

use tokio::io::{AsyncSeekExt, AsyncWriteExt};
use waggle_protocol::{
    Fault, FaultKind, Input,
    request::{Exec, User},
};

use crate::{calls::Reader, fault::fault_of, guest::Served, temporary::TemporaryFile};

/// Largest script, in bytes: twice what the host lets its clients send.
const SCRIPT_BYTES_MAX: u64 = 1024 * 1024;

/// Largest stdin, in bytes: what the host lets its clients send, and some room.
const STDIN_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// What a command starts with.
pub(super) struct Inputs {
    script: Option<TemporaryFile>,
    stdin: Option<TemporaryFile>,
}

impl Inputs {
    /// The path of the code's file.
    pub(super) fn script(&self) -> Option<&Path> {
        self.script.as_ref().map(TemporaryFile::place)
    }

    /// Removes the files, and resolves when that is done.
    pub(super) async fn remove(self) {
        for file in [self.script, self.stdin].into_iter().flatten() {
            file.into_name().remove().await;
        }
    }

    /// Stdin's descriptor: the bytes that came, or an empty stdin.
    pub(super) fn stdin(&self) -> io::Result<OwnedFd> {
        match &self.stdin {
            Some(file) => Ok(file.file().try_clone()?.into()),
            None => Ok(File::open("/dev/null")?.into()),
        }
    }
}

/// What came of the inputs.
pub(super) enum Received<T> {
    /// All of them.
    All(T),
    /// The host cancelled the call before.
    Cancelled,
    /// The host left before.
    Gone,
}

/// Takes in what the request announces.
pub(super) async fn receive(served: &Served, request: &Exec, reader: &mut Reader) -> Result<Received<Inputs>, Fault> {
    let mut inputs = Inputs { script: None, stdin: None };
    if let Some(script) = &request.script {
        check("a script", script.bytes, SCRIPT_BYTES_MAX)?;
        let what = Incoming { extension: &script.extension, bytes: script.bytes, name: "the code" };
        inputs.script = match what.receive(served, request.user, reader).await? {
            Received::All(file) => Some(file),
            Received::Cancelled => return Ok(Received::Cancelled),
            Received::Gone => return Ok(Received::Gone),
        };
    }
    if request.stdin_bytes > 0 {
        check("stdin", request.stdin_bytes, STDIN_BYTES_MAX)?;
        let what = Incoming { extension: "stdin", bytes: request.stdin_bytes, name: "stdin" };
        inputs.stdin = match what.receive(served, request.user, reader).await? {
            Received::All(file) => Some(file),
            Received::Cancelled => return Ok(Received::Cancelled),
            Received::Gone => return Ok(Received::Gone),
        };
    }
    Ok(Received::All(inputs))
}

/// Bytes that are to come, and the file that they go to.
struct Incoming<'a> {
    extension: &'a str,
    bytes: u64,
    name: &'a str,
}

impl Incoming<'_> {
    /// Takes in exactly the announced bytes.
    async fn receive(
        &self,
        served: &Served,
        user: User,
        reader: &mut Reader,
    ) -> Result<Received<TemporaryFile>, Fault> {
        let failed = |source: io::Error| fault_of(&source, &format!("failed to write {} to a file in /tmp", self.name));
        let file = TemporaryFile::create(served, self.extension, user).await.map_err(failed)?;
        let mut writing = tokio::fs::File::from_std(file.file().try_clone().map_err(failed)?);
        let mut missing = self.bytes;
        while missing > 0 {
            match reader.receive::<Input<'_>>().await {
                Ok(Some(Input::Data(bytes))) if !bytes.is_empty() && bytes.len() as u64 <= missing => {
                    writing.write_all(bytes).await.map_err(failed)?;
                    missing -= bytes.len() as u64;
                }
                Ok(Some(Input::Data(bytes))) => {
                    let message = format!("an input of {} bytes came where 1 to {missing} were due", bytes.len());
                    return Err(Fault { kind: FaultKind::BadRequest, message });
                }
                Ok(Some(Input::Cancel)) => return Ok(Received::Cancelled),
                Ok(None) | Err(_) => return Ok(Received::Gone),
            }
        }
        writing.flush().await.map_err(failed)?;
        // The command reads through the same open file.
        writing.rewind().await.map_err(failed)?;
        Ok(Received::All(file))
    }
}

fn check(what: &str, bytes: u64, bytes_max: u64) -> Result<(), Fault> {
    if bytes <= bytes_max {
        return Ok(());
    }
    let message = format!("{what} of {bytes} bytes is above the agent's limit of {bytes_max}");
    Err(Fault { kind: FaultKind::TooLarge, message })
}
