// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Writes the result of a tool: one JSON object, as text and as structured content.

use rmcp::model::{CallToolResult, ContentBlock};
use serde::Serialize;

use super::errors::{Failure, Outcome};
use crate::telemetry::STAGES;

/// Writes an object as text (keys sorted, two-space indent) and as structured content.
pub(super) fn object(result: &impl Serialize) -> Outcome {
    let _writing = tracing::debug_span!(target: STAGES, "result").entered();
    // A JSON value sorts its keys; the order of the fields in the type does not matter.
    let value = serde_json::to_value(result).map_err(Failure::Result)?;
    let text = serde_json::to_string_pretty(&value).map_err(Failure::Result)?;
    let mut reply = CallToolResult::structured(value);
    reply.content = vec![ContentBlock::text(text)];
    Ok(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_sorted_keys_and_two_spaces() {
        #[derive(Serialize)]
        struct Result {
            b: u32,
            a: &'static str,
        }
        let reply = object(&Result { b: 1, a: "x" }).unwrap();
        assert_eq!(reply.content[0].as_text().unwrap().text, "{\n  \"a\": \"x\",\n  \"b\": 1\n}");
        assert_eq!(reply.structured_content, Some(serde_json::json!({"a": "x", "b": 1})));
    }
}
