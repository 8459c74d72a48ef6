// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Errors of a call: the agent broke the protocol, or refused the request.

use std::time::Duration;

use waggle_link::ReceiveFault;
use waggle_protocol::{Fault, FaultKind, Reply, TEXT_BYTES_MAX};
use waggle_shared::printable;

use crate::domain::call_fault::{CallFault, RefusalKind};

/// The agent broke the protocol.
#[derive(Debug, thiserror::Error)]
pub(super) enum AgentFault {
    /// A reply is incomplete or invalid.
    #[error("failed to read a reply")]
    Receive { source: ReceiveFault },
    /// The stream ended before the last reply.
    #[error("the stream of the call ended before its last reply")]
    Cut,
    /// The reply does not belong to this kind of call.
    #[error("received an unexpected reply of the kind {found}")]
    Unexpected {
        /// The reply's kind.
        found: &'static str,
    },
    /// The agent sent more than the call asked for.
    #[error("received more than {max} {what}")]
    TooMuch {
        /// The unit, for example `bytes of a file`.
        what: &'static str,
        /// The limit of the call.
        max: u64,
    },
    /// The names of a listing do not ascend.
    #[error("received names of a folder in the wrong order")]
    Unordered,
    /// The number of all entries is less than that of the entries that were sent.
    #[error("received more entries of a folder than the agent counted")]
    Miscounted,
    /// The call timed out.
    #[error("the call's last reply did not arrive within {} s", within.as_secs_f32())]
    Silent { within: Duration },
}

impl From<AgentFault> for CallFault {
    fn from(fault: AgentFault) -> Self {
        Self::Protocol { source: fault.into() }
    }
}

/// Builds the error for a reply that does not belong to this kind of call.
pub(super) fn unexpected(reply: &Reply<'_>) -> AgentFault {
    let found = match reply {
        Reply::Stdout(_) => "stdout",
        Reply::Stderr(_) => "stderr",
        Reply::Data(_) => "data",
        Reply::Entries(_) => "entries",
        Reply::Exited(_) => "exited",
        Reply::Written { .. } => "written",
        Reply::FileEnd { .. } => "file end",
        Reply::ListEnd { .. } => "list end",
        Reply::ClockSet { .. } => "clock set",
        Reply::Done => "done",
        Reply::Fault(_) => "fault",
    };
    AgentFault::Unexpected { found }
}

/// Converts the agent's refusal into the domain's type, with text that is safe to print.
pub(super) fn refused(fault: &Fault) -> CallFault {
    let kind = match fault.kind {
        FaultKind::NotFound => RefusalKind::NotFound,
        FaultKind::IsDirectory => RefusalKind::IsDirectory,
        FaultKind::NotDirectory => RefusalKind::NotDirectory,
        FaultKind::NotRegular => RefusalKind::NotRegular,
        FaultKind::Denied => RefusalKind::Denied,
        FaultKind::TooLarge => RefusalKind::TooLarge,
        FaultKind::NoSpace => RefusalKind::NoSpace,
        FaultKind::ReadOnly => RefusalKind::ReadOnly,
        FaultKind::InvalidPath => RefusalKind::InvalidPath,
        FaultKind::Busy => RefusalKind::Busy,
        FaultKind::BadRequest | FaultKind::Other => RefusalKind::Other,
    };
    CallFault::Refused { kind, message: printable::text(&fault.message, TEXT_BYTES_MAX) }
}
