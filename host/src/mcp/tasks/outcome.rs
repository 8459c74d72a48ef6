// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Converts the outcome of a call into the final state of a task, and measures the memory of that state.

use rmcp::model::{JsonObject, TaskPayload};
use serde::Serialize;
use serde_json::Value;

use crate::domain::principal::Principal;
use crate::mcp::{
    errors,
    failure::{Failure, Outcome},
    json_size::{NODE_BYTES, object_bytes},
    results::written_bytes,
};

/// The memory of a task's final state, in bytes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct StateBytes {
    /// As the task keeps it.
    pub(super) kept: usize,
    /// As an answer writes it.
    pub(super) written: usize,
}

/// Returns the final state of a task, and the state's size. An error that the caller can fix completes the task like
/// any other result; only a failure of the server fails the task.
pub(super) fn settle(tool: &str, caller: &Principal, outcome: Outcome) -> (TaskPayload, StateBytes) {
    if outcome.as_ref().is_err_and(Failure::is_cancelled) {
        return (TaskPayload::Cancelled, StateBytes { kept: NODE_BYTES, written: 0 });
    }
    let bytes =
        |object: &JsonObject| StateBytes { kept: NODE_BYTES + object_bytes(object), written: written_bytes(object) };
    match outcome.or_else(|failure| errors::into_reply(tool, caller, failure)) {
        Ok(result) => {
            let result = object(&result);
            let bytes = bytes(&result);
            (TaskPayload::Completed { result }, bytes)
        }
        Err(error) => {
            let error = object(&error);
            let bytes = bytes(&error);
            (TaskPayload::Failed { error }, bytes)
        }
    }
}

fn object(value: &impl Serialize) -> JsonObject {
    match serde_json::to_value(value) {
        Ok(Value::Object(object)) => object,
        // Results and errors are objects with strings for keys, so neither case occurs.
        Ok(_) | Err(_) => JsonObject::new(),
    }
}
