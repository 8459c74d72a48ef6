// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Lines of JSON over a Unix socket, with open files attached.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use rustix::{
    cmsg_space,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
        recvmsg, sendmsg,
    },
};
use serde::de::DeserializeOwned;

use super::runner_messages::LINE_BYTES_MAX;

/// Maximum number of files with one line.
pub(super) const FILES_MAX: usize = 4;

/// Sends a part of `bytes`, and the files with its first byte. Returns the number of sent bytes.
///
/// # Errors
/// The kernel's error.
pub(super) fn send(socket: impl AsFd, bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(FILES_MAX))];
    let mut attached = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !attached.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut attached, SendFlags::NOSIGNAL)?)
}

/// Waits for a line and parses it. Returns the files that came with the line; `None` at the end of the socket.
///
/// # Errors
/// The kernel's error, or the line is too long or invalid.
pub(super) fn receive<T: DeserializeOwned>(socket: &UnixStream) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let (mut line, mut files) = (Vec::new(), Vec::new());
    while !line.ends_with(b"\n") {
        // The other end sends one line at a time, so what arrives is never more than the rest of this one.
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(FILES_MAX))];
        let mut attached = RecvAncillaryBuffer::new(&mut space);
        let received =
            recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut attached, RecvFlags::CMSG_CLOEXEC)?.bytes;
        for message in attached.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                files.extend(received);
            }
        }
        line.extend_from_slice(bytes.get(..received).unwrap_or_default());
        if received == 0 {
            return Ok(None);
        }
        if line.len() as u64 > LINE_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
    }
    Ok(Some((serde_json::from_slice(&line)?, files)))
}
