// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Estimates the memory use of JSON values.

use serde_json::{Map, Value};

/// Size of a value without its text, including the value's slot in the surrounding array.
pub(super) const NODE_BYTES: usize = 64;

/// Size of a node of the B-tree that holds the names and values of an object, and the number of entries in a node that
/// is filled the least.
const TREE_NODE_BYTES: usize = 640;
const TREE_NODE_ENTRIES: usize = 6;

/// Size of the name of an object's entry without its text, rounded up for the allocator.
const NAME_BYTES: usize = 16;

/// Returns the memory use of a value, rounded up a little.
pub(super) fn value_bytes(value: &Value) -> usize {
    NODE_BYTES
        + match value {
            Value::String(text) => text.len(),
            Value::Array(values) => values.iter().map(value_bytes).sum(),
            Value::Object(object) => object_bytes(object),
            Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        }
}

/// Returns the memory use of the entries of an object, rounded up a little.
pub(super) fn object_bytes(object: &Map<String, Value>) -> usize {
    let entries = object.iter().map(|(name, value)| NAME_BYTES + name.len() + value_bytes(value));
    object.len().div_ceil(TREE_NODE_ENTRIES) * TREE_NODE_BYTES + entries.sum::<usize>()
}
