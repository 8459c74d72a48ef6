// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Failures of a call into a machine.

use std::error::Error;

#[derive(Debug, thiserror::Error)]
pub enum CallFault {
    /// The guest refused, for a reason that the caller can fix.
    #[error("{message}")]
    Refused {
        kind: RefusalKind,
        /// The agent's message, checked for length and control characters.
        message: String,
    },
    /// The machine, or the link to its agent, has ended.
    #[error("the machine is gone: {reason}")]
    Gone { reason: String },
    /// The agent broke the protocol.
    #[error("the guest agent broke the protocol")]
    Protocol { source: Box<dyn Error + Send + Sync> },
}

/// Why the guest refused a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RefusalKind {
    /// The file, folder or program does not exist.
    NotFound,
    /// The path is a folder, but a file is needed.
    IsDirectory,
    /// The path is a file, but a folder is needed.
    NotDirectory,
    /// Not a regular file: a device, a socket, a pipe.
    NotRegular,
    /// The sandbox user lacks the permission.
    Denied,
    /// The data exceeds the size limit of the call.
    TooLarge,
    /// The guest's disk is full, or its quota is used up.
    NoSpace,
    ReadOnly,
    InvalidPath,
    /// Too many calls are running.
    Busy,
    /// Any other error of the guest's kernel.
    Other,
}
