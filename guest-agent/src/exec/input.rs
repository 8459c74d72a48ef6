// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Inputs of a command: its code and its stdin. They arrive before the command starts, and each is stored in a file.
//!
//! A command that does not read its stdin therefore can't block the call's stream, so a `Cancel` of the host never
//! waits behind unread bytes.

use std::{fs::File, io, os::fd::OwnedFd};

use tokio::io::{AsyncSeekExt, AsyncWriteExt};
use waggle_protocol::{Fault, FaultKind, Input, request::Exec};

use super::code::CodeFolder;
use crate::{
    fault::{check_input, fault, fault_of},
    streams::Reader,
    temporary::{TemporaryFile, TemporaryFolder},
};

/// Maximum size of a script in bytes: about twice the maximum that the host allows its clients.
const SCRIPT_BYTES_MAX: u64 = 1024 * 1024;

/// Maximum size of stdin in bytes: more than the maximum that the host allows its clients.
const STDIN_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Maximum size in bytes of a stdin that is stored in the space of the code if the disk is full. The stdins of all
/// calls at once then have at most half of that space.
const SMALL_STDIN_BYTES_MAX: u64 = 512 * 1024;

pub(super) struct Inputs {
    code: Option<TemporaryFile>,
    stdin: Option<TemporaryFile>,
    /// Whether stdin is stored in the space of the code.
    is_stdin_with_code: bool,
}

impl Inputs {
    pub(super) fn code(&self) -> Option<&TemporaryFile> {
        self.code.as_ref()
    }

    /// Removes the files, and resolves when they are removed.
    pub(super) async fn remove(self) {
        for file in [&self.code, if self.is_stdin_with_code { &self.stdin } else { &None }].into_iter().flatten() {
            // A background process that has the file open must not keep its space. The error leaves the file as it is.
            let _emptied = file.file().set_len(0);
        }
        for file in [self.code, self.stdin].into_iter().flatten() {
            file.into_name().remove().await;
        }
    }

    /// Returns a descriptor of the received stdin, or of `/dev/null` if the request has none.
    pub(super) fn stdin(&self) -> io::Result<OwnedFd> {
        match &self.stdin {
            // With the agent's own descriptor, users could fill the space of the code.
            Some(file) if self.is_stdin_with_code => Ok(file.open_read_only()?.into()),
            Some(file) => Ok(file.file().try_clone()?.into()),
            None => Ok(File::open("/dev/null")?.into()),
        }
    }
}

/// The reason why not all inputs were received.
pub(super) enum NoInputs {
    Cancelled,
    HostGone,
    Failed(Fault),
}

impl From<Fault> for NoInputs {
    fn from(fault: Fault) -> Self {
        Self::Failed(fault)
    }
}

/// Receives the inputs that the request announces.
pub(super) async fn receive(
    code: &CodeFolder,
    temporary: &TemporaryFolder,
    request: &Exec,
    reader: &mut Reader,
) -> Result<Inputs, NoInputs> {
    let mut inputs = Inputs { code: None, stdin: None, is_stdin_with_code: false };
    if let Some(script) = &request.script {
        check_size("script", script.bytes, SCRIPT_BYTES_MAX)?;
        let announced = Announced { extension: &script.extension, bytes: script.bytes, name: "the code" };
        let file = code.files().create_readable(announced.extension, request.user).await;
        inputs.code = Some(announced.receive(file, reader).await?);
    }
    if request.stdin_bytes > 0 {
        check_size("stdin", request.stdin_bytes, STDIN_BYTES_MAX)?;
        let announced = Announced { extension: "stdin", bytes: request.stdin_bytes, name: "stdin" };
        let mut file = temporary.create_with_space(announced.extension, request.user, announced.bytes).await;
        if announced.bytes <= SMALL_STDIN_BYTES_MAX && file.as_ref().is_err_and(is_disk_full) {
            file = code.files().create_readable(announced.extension, request.user).await;
            inputs.is_stdin_with_code = true;
        }
        inputs.stdin = Some(announced.receive(file, reader).await?);
    }
    Ok(inputs)
}

/// An input that the request announced.
struct Announced<'a> {
    extension: &'a str,
    bytes: u64,
    name: &'a str,
}

impl Announced<'_> {
    /// Receives exactly the announced bytes into a new file.
    async fn receive(&self, file: io::Result<TemporaryFile>, reader: &mut Reader) -> Result<TemporaryFile, NoInputs> {
        let failed = |source: io::Error| fault_of(&source, &format!("failed to write {} to a file", self.name));
        let file = file.map_err(failed)?;
        let mut writing = tokio::fs::File::from_std(file.file().try_clone().map_err(failed)?);
        let mut missing = self.bytes;
        while missing > 0 {
            match reader.receive::<Input<'_>>().await {
                Ok(Some(Input::Data(bytes))) => {
                    check_input(bytes, missing)?;
                    writing.write_all(bytes).await.map_err(failed)?;
                    missing -= bytes.len() as u64;
                }
                Ok(Some(Input::Cancel)) => return Err(NoInputs::Cancelled),
                Ok(None) | Err(_) => return Err(NoInputs::HostGone),
            }
        }
        writing.flush().await.map_err(failed)?;
        // The command reads through a copy of this descriptor, which shares its offset.
        writing.rewind().await.map_err(failed)?;
        Ok(file)
    }
}

fn is_disk_full(fault: &io::Error) -> bool {
    matches!(fault.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn check_size(name: &str, bytes: u64, bytes_max: u64) -> Result<(), Fault> {
    if bytes <= bytes_max {
        return Ok(());
    }
    Err(fault(FaultKind::TooLarge, format!("{name} has {bytes} bytes; the agent accepts at most {bytes_max}")))
}
