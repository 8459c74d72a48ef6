// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Estimates the memory that JSON values take.

use serde_json::Value;

/// The size of a value beside its text, with its slot in the array or object that holds it.
pub(super) const NODE_BYTES: usize = 64;

/// The memory that a value takes, or a little more.
pub(super) fn value_bytes(value: &Value) -> usize {
    NODE_BYTES
        + match value {
            Value::String(text) => text.len(),
            Value::Array(values) => values.iter().map(value_bytes).sum(),
            Value::Object(object) => object.iter().map(|(name, value)| name.len() + value_bytes(value)).sum(),
            Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        }
}
