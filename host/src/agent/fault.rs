// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What can go wrong with a call, apart from what the guest's kernel says.

use std::time::Duration;

use waggle_link::ReceiveFault;
use waggle_protocol::{Fault, FaultKind, Reply, TEXT_BYTES_MAX};

use crate::{
    domain::call_fault::{CallFault, RefusalKind},
    printable,
};

/// The agent does not do as the protocol says.
#[derive(Debug, thiserror::Error)]
pub(super) enum AgentFault {
    /// A reply did not arrive whole.
    #[error("failed to read a reply")]
    Receive {
        /// What came in the way.
        source: ReceiveFault,
    },
    /// The stream ended before the last reply.
    #[error("the call was cut before its last reply")]
    Cut,
    /// A reply that has no place in this call.
    #[error("a reply of the kind {found} has no place in this call")]
    Unexpected {
        /// Its kind.
        found: &'static str,
    },
    /// More than the call asked for.
    #[error("more than {max} {what} came")]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// The most that was asked for.
        max: u64,
    },
    /// Nothing came in time.
    #[error("no last reply within {} s", within.as_secs_f32())]
    Silent {
        /// How long was waited.
        within: Duration,
    },
}

impl From<AgentFault> for CallFault {
    fn from(fault: AgentFault) -> Self {
        Self::Protocol { source: fault.into() }
    }
}

/// A reply that has no place in its call.
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
        Reply::Done => "done",
        Reply::Fault(_) => "fault",
    };
    AgentFault::Unexpected { found }
}

/// The agent's refusal, in the domain's words and with text that is safe to show.
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
