// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Estimates the memory use of JSON values.

use serde_json::Value;

/// Size of a value without its text, including the value's slot in the surrounding array or object.
pub(super) const NODE_BYTES: usize = 64;

/// Returns the memory use of a value, rounded up a little.
pub(super) fn value_bytes(value: &Value) -> usize {
    NODE_BYTES
        + match value {
            Value::String(text) => text.len(),
            Value::Array(values) => values.iter().map(value_bytes).sum(),
            Value::Object(object) => object.iter().map(|(name, value)| name.len() + value_bytes(value)).sum(),
            Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        }
}
