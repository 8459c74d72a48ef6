// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Failures of calls, as the agent reports them.

use serde::{Deserialize, Serialize};

/// The failure of a call that the agent refused or could not finish.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Fault {
    /// The kind of the failure, for programs.
    pub kind: FaultKind,
    /// A text for people: the failed operation, its operands and the error. At most [`crate::TEXT_BYTES_MAX`] bytes.
    pub message: String,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum FaultKind {
    /// No such file, folder or program (ENOENT).
    NotFound,
    /// A folder where a file is needed (EISDIR).
    IsDirectory,
    /// A file where a folder is needed (ENOTDIR).
    NotDirectory,
    /// Neither a file nor a folder: a device, a socket, a pipe.
    NotRegular,
    /// Permission denied for the user (EACCES, EPERM).
    Denied,
    /// The file is larger than the call allows.
    TooLarge,
    /// The disk or its quota is full (ENOSPC, EDQUOT).
    NoSpace,
    /// A read-only file system (EROFS).
    ReadOnly,
    /// An invalid path (ENAMETOOLONG, ELOOP, EINVAL).
    InvalidPath,
    /// Too many calls are running in the agent.
    Busy,
    /// The host violated the protocol, or requested an operation that this agent does not support.
    BadRequest,
    /// Any other error of the guest's kernel.
    Other,
}
