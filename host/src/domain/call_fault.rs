// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Failures of a call into a machine.

use std::error::Error;

/// A call into a machine failed.
#[derive(Debug, thiserror::Error)]
pub enum CallFault {
    /// The guest refused, for a reason that the caller can fix.
    #[error("{message}")]
    Refused {
        /// The kind of reason.
        kind: RefusalKind,
        /// The agent's message, checked for length and control characters.
        message: String,
    },
    /// The machine or its link has ended.
    #[error("the machine is gone: {reason}")]
    Gone {
        /// The reason.
        reason: String,
    },
    /// The agent broke the protocol.
    #[error("failed to understand the guest agent")]
    Protocol {
        /// The violation.
        source: Box<dyn Error + Send + Sync>,
    },
}

/// Why the guest refused a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RefusalKind {
    /// The file, folder or program does not exist.
    NotFound,
    /// A folder where a file is needed.
    IsDirectory,
    /// A file where a folder is needed.
    NotDirectory,
    /// Not a regular file: a device, a socket, a pipe.
    NotRegular,
    /// The sandbox user lacks the permission.
    Denied,
    /// Above the limit of this call.
    TooLarge,
    /// The guest's disk is full, or its quota is used up.
    NoSpace,
    /// A read-only file system.
    ReadOnly,
    /// The path is invalid.
    InvalidPath,
    /// Too many calls at once.
    Busy,
    /// Any other error of the guest's kernel.
    Other,
}
