// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Converts the outcome of a call into the final state of a task, and measures the memory of that state.

use rmcp::model::{CallToolResult, ContentBlock, JsonObject, TaskPayload};
use serde::Serialize;
use serde_json::Value;

use crate::mcp::{
    errors,
    failure::{Failure, Outcome},
    json_size::{NODE_BYTES, value_bytes},
};

/// Returns the final state of a task, and the state's size. An error that the caller can fix completes the task like
/// any other result; only a failure of the server fails the task.
pub(super) fn settle(tool: &str, outcome: Outcome) -> (TaskPayload, usize) {
    if outcome.as_ref().is_err_and(Failure::is_cancelled) {
        return (TaskPayload::Cancelled, NODE_BYTES);
    }
    match outcome.or_else(|failure| errors::into_reply(tool, failure)) {
        Ok(result) => {
            let bytes = result_bytes(&result);
            (TaskPayload::Completed { result: object(&result) }, bytes)
        }
        Err(error) => {
            let bytes = NODE_BYTES + error.message.len();
            (TaskPayload::Failed { error: object(&error) }, bytes)
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

fn result_bytes(result: &CallToolResult) -> usize {
    let block_bytes = |block: &ContentBlock| NODE_BYTES + block.as_text().map_or(0, |text| text.text.len());
    let content: usize = result.content.iter().map(block_bytes).sum();
    content + result.structured_content.as_ref().map_or(0, value_bytes)
}
