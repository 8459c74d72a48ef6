// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Why the agent did not do what a call asked.

use serde::{Deserialize, Serialize};

/// A call that the agent refused, or could not finish.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Fault {
    /// The kind, for programs.
    pub kind: FaultKind,
    /// What was tried on what and how it failed, for people; at most [`crate::TEXT_BYTES_MAX`] bytes.
    pub message: String,
}

/// Kinds of fault.
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
    /// The user may not (EACCES, EPERM).
    Denied,
    /// Larger than the call allows.
    TooLarge,
    /// The disk or its quota is full (ENOSPC, EDQUOT).
    NoSpace,
    /// A read-only place (EROFS).
    ReadOnly,
    /// A path that can't name anything (ENAMETOOLONG, ELOOP, EINVAL).
    InvalidPath,
    /// The agent serves as many calls as it may.
    Busy,
    /// The host broke the protocol, or asked for what this agent does not do.
    BadRequest,
    /// Anything else that the guest's kernel said.
    Other,
}
