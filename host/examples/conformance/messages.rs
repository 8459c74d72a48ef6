// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Parts of messages that several fixtures use.

use serde_json::{Value, json};

/// Marks a result as complete, as the newest protocol version requires. rmcp removes this field for older versions.
pub(crate) fn complete(mut result: Value) -> Value {
    result["resultType"] = "complete".into();
    result
}

/// Returns a request that asks the user to fill in a form with one field.
pub(crate) fn question(message: &str, field: &str, kind: &str) -> Value {
    let schema = json!({"type": "object", "properties": {field: {"type": kind}}, "required": [field]});
    json!({
        "method": "elicitation/create",
        "params": {"mode": "form", "message": message, "requestedSchema": schema},
    })
}
