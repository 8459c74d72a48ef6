// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The outcome of a call: a result, or the reason why there is none. `errors` converts the reason into an answer.

use rmcp::model::CallToolResult;

use super::arguments::SchemaFault;
use crate::service::fault::{CallerFault, Fault};

/// The result of a call.
pub(super) type Outcome = Result<CallToolResult, Failure>;

/// The reason why a call has no result.
#[derive(Debug)]
pub(super) enum Failure {
    Arguments(SchemaFault),
    Service(Fault),
    /// The result could not be written as JSON.
    Result(serde_json::Error),
    UnknownTool {
        available: String,
    },
    /// The code of the tool panicked.
    Panic,
}

impl Failure {
    /// Whether the caller cancelled the call.
    pub(super) fn is_cancelled(&self) -> bool {
        let Self::Service(Fault::Caller(fault)) = self else { return false };
        matches!(fault, CallerFault::Cancelled { .. } | CallerFault::InstallationCancelled { .. })
    }
}

impl From<SchemaFault> for Failure {
    fn from(fault: SchemaFault) -> Self {
        Self::Arguments(fault)
    }
}

impl<F: Into<Fault>> From<F> for Failure {
    fn from(fault: F) -> Self {
        Self::Service(fault.into())
    }
}
