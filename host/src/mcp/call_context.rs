// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The context of one tool call: everything except the call's arguments.

use tokio_util::sync::CancellationToken;

use super::{memory::RequestMemory, progress::Progress};
use crate::{
    domain::principal::Principal,
    service::fault::{CallerFault, Fault},
};

/// The caller of a tool, and the channels to that caller.
pub(super) struct CallContext {
    pub(super) owner: Principal,
    pub(super) cancelled: CancellationToken,
    pub(super) progress: Progress,
    pub(super) memory: RequestMemory,
}

impl CallContext {
    /// Runs an operation to its end. If the caller cancels the call, the operation is dropped.
    pub(super) async fn unless_cancelled<T>(
        &self,
        operation: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Fault> {
        tokio::select! {
            outcome = operation => outcome,
            () = self.cancelled.cancelled() => Err(CallerFault::Cancelled { executed: None }.into()),
        }
    }
}
