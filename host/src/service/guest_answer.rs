// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Waits for the answer of a guest, and turns a failure into the fault that the caller sees.

use std::future::Future;

use super::{
    environments::Environments,
    fault::{CallerFault, Fault, ServerFault},
    request::Call,
};
use crate::{
    domain::{call_fault::CallFault, principal::Principal},
    log_limit,
};

/// Waits for the answer of a guest. If the machine has ended, the environment's state determines the fault.
pub(super) async fn await_guest<T>(
    environments: &Environments,
    owner: &Principal,
    call: &Call,
    operation: &'static str,
    answer: impl Future<Output = Result<T, CallFault>>,
) -> Result<T, Fault> {
    let id = call.environment.id;
    match answer.await {
        Ok(answer) => Ok(answer),
        Err(CallFault::Refused { kind, message }) => Err(CallerFault::Guest { kind, message }.into()),
        Err(CallFault::Gone { reason }) => {
            // A machine that is being stopped ends under its calls as well.
            if environments.is_running(owner, id)
                && let Some(left_out) = log_limit::admitted(id)
            {
                tracing::warn!(environment = %id, operation, reason, left_out, "machine ended during a call");
            }
            Err(environments.ended_during_call(owner, id).into())
        }
        // A machine that is being stopped cuts off its calls in the middle of a message.
        Err(CallFault::Protocol { .. }) if !environments.is_running(owner, id) => {
            Err(environments.ended_during_call(owner, id).into())
        }
        Err(source @ CallFault::Protocol { .. }) => Err(ServerFault::Call { operation, id, source }.into()),
    }
}
