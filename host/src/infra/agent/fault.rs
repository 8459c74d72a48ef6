// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What can go wrong with a call, apart from what the guest's kernel says.

use waggle_link::ReceiveFault;
use waggle_protocol::{Fault, FaultKind, Reply, TEXT_BYTES_MAX};

use crate::domain::ports::{CallFault, RefusalKind};

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
    #[error("no last reply within {seconds} s")]
    Silent {
        /// How long was waited.
        seconds: u64,
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
    CallFault::Refused { kind, message: printable(&fault.message) }
}

/// At most [`TEXT_BYTES_MAX`] bytes, control characters escaped.
fn printable(text: &str) -> String {
    let mut shown = String::new();
    for character in text.chars() {
        if shown.len() + character.len_utf8() > TEXT_BYTES_MAX {
            break;
        }
        if character.is_control() { shown.extend(character.escape_default()) } else { shown.push(character) }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_the_guest_is_shown_without_control_characters_and_within_the_limit() {
        assert_eq!(printable("a\x1b[2Jb\nc"), "a\\u{1b}[2Jb\\nc");
        assert!(printable(&"é".repeat(TEXT_BYTES_MAX)).len() <= TEXT_BYTES_MAX);
    }
}
