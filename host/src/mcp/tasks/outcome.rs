// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What a call comes to, as a task tells it, and how much memory that takes.

use rmcp::model::{CallToolResult, ContentBlock, JsonObject, TaskPayload};
use serde::Serialize;
use serde_json::Value;

use crate::mcp::errors::{self, Failure};

/// What a call comes to.
pub(in crate::mcp) type Outcome = Result<CallToolResult, Failure>;

/// Beside the text of a value: the value itself, and its place in what it belongs to.
const NODE_BYTES: usize = 64;

/// The last state of a task, and what it holds. An error that the caller can mend is a result like any other; only a
/// failure of the server has failed.
pub(super) fn settle(tool: &str, outcome: Outcome) -> (TaskPayload, usize) {
    if outcome.as_ref().is_err_and(Failure::is_cancelled) {
        return (TaskPayload::Cancelled, NODE_BYTES);
    }
    match outcome.or_else(|failure| errors::into_reply(tool, failure)) {
        Ok(result) => {
            let bytes = weight(&result);
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
        // Results and errors are objects with text for keys.
        Ok(_) | Err(_) => JsonObject::new(),
    }
}

fn weight(result: &CallToolResult) -> usize {
    let text = |block: &ContentBlock| NODE_BYTES + block.as_text().map_or(0, |text| text.text.len());
    let content: usize = result.content.iter().map(text).sum();
    content + result.structured_content.as_ref().map_or(0, value_weight)
}

/// What a value takes in memory, or a little more.
pub(super) fn value_weight(value: &Value) -> usize {
    NODE_BYTES
        + match value {
            Value::String(text) => text.len(),
            Value::Array(values) => values.iter().map(value_weight).sum(),
            Value::Object(object) => object.iter().map(|(name, value)| name.len() + value_weight(value)).sum(),
            Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        }
}
