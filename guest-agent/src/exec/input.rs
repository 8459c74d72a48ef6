// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What comes in before a command starts: its code and its stdin, each into a file.
//!
//! Stdin lies in a file so that a command that does not read it holds up nothing: the host's `Cancel` is never stuck
//! behind bytes that nobody takes.

use std::{
    fs::{File, OpenOptions},
    io::{self, Seek, Write},
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt},
    path::Path,
};

use nix::libc;
use waggle_protocol::{Fault, FaultKind, Input, request::Exec};

use crate::{calls::Reader, fault::fault_of, guest::Served, temporary::TemporaryFile};

/// Largest script, in bytes: twice what the host lets its clients send.
const SCRIPT_BYTES_MAX: u64 = 1024 * 1024;

/// Largest stdin, in bytes: what the host lets its clients send, and some room.
const STDIN_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// What a command starts with.
pub(super) struct Inputs {
    script: Option<TemporaryFile>,
    stdin: Option<File>,
}

impl Inputs {
    /// The path of the code's file.
    pub(super) fn script(&self) -> Option<&Path> {
        self.script.as_ref().and_then(TemporaryFile::place)
    }

    /// Stdin's descriptor: the bytes that came, or an empty stdin.
    pub(super) fn stdin(&self) -> io::Result<OwnedFd> {
        match &self.stdin {
            Some(file) => Ok(file.try_clone()?.into()),
            None => Ok(File::open("/dev/null")?.into()),
        }
    }
}

/// Takes in what the request announces; `Ok(None)` if the host left or cancelled meanwhile.
pub(super) async fn receive(served: &Served, request: &Exec, reader: &mut Reader) -> Result<Option<Inputs>, Fault> {
    let mut inputs = Inputs { script: None, stdin: None };
    if let Some(script) = &request.script {
        check("a script", script.bytes, SCRIPT_BYTES_MAX)?;
        let failed = |source: io::Error| fault_of(&source, "failed to write the code to a file in /tmp");
        let mut file = TemporaryFile::create(served, &script.extension, request.user).map_err(failed)?;
        if !fill(reader, script.bytes, |bytes| file.file().write_all(bytes).map_err(failed)).await? {
            return Ok(None);
        }
        inputs.script = Some(file);
    }
    if request.stdin_bytes > 0 {
        check("stdin", request.stdin_bytes, STDIN_BYTES_MAX)?;
        let failed = |source: io::Error| fault_of(&source, "failed to write stdin to a file in /tmp");
        let mut file = nameless_file(served).map_err(failed)?;
        if !fill(reader, request.stdin_bytes, |bytes| file.write_all(bytes).map_err(failed)).await? {
            return Ok(None);
        }
        file.rewind().map_err(failed)?;
        inputs.stdin = Some(file);
    }
    Ok(Some(inputs))
}

fn check(what: &str, bytes: u64, bytes_max: u64) -> Result<(), Fault> {
    if bytes <= bytes_max {
        return Ok(());
    }
    let message = format!("{what} of {bytes} bytes is above the agent's limit of {bytes_max}");
    Err(Fault { kind: FaultKind::TooLarge, message })
}

/// Passes exactly `missing` bytes of input to `take`; false if the host left or cancelled first.
async fn fill(
    reader: &mut Reader,
    mut missing: u64,
    mut take: impl FnMut(&[u8]) -> Result<(), Fault>,
) -> Result<bool, Fault> {
    while missing > 0 {
        match reader.receive::<Input<'_>>().await {
            Ok(Some(Input::Data(bytes))) if !bytes.is_empty() && bytes.len() as u64 <= missing => {
                take(bytes)?;
                missing -= bytes.len() as u64;
            }
            Ok(Some(Input::Data(bytes))) => {
                let message = format!("an input of {} bytes came where 1 to {missing} were due", bytes.len());
                return Err(Fault { kind: FaultKind::BadRequest, message });
            }
            Ok(Some(Input::Cancel) | None) | Err(_) => return Ok(false),
        }
    }
    Ok(true)
}

/// A file without a name in the guest's `/tmp`: it is gone with its last descriptor.
fn nameless_file(served: &Served) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).mode(0o600).open(served.place("/tmp"))
}
