// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Simplifies the schemas of tools to what every client can read.
//!
//! Agent frameworks convert schemas to the formats of model APIs. Many of them know only a part of JSON Schema: one
//! type per value, no `null`, no alternatives, and properties in every object. So an optional argument is one that is
//! not required, and a choice is an enumeration of strings.

use std::sync::Arc;

use rmcp::model::JsonObject;
use serde_json::{Value, json};

/// Keywords that some clients reject and that say nothing more: the dialect, the names of Rust types, and the formats
/// of numbers (`uint64`, `double`).
const OMITTED: [&str; 3] = ["$schema", "title", "format"];

/// Returns the simplified schema.
pub(super) fn plain(schema: &JsonObject) -> Arc<JsonObject> {
    let mut schema = schema.clone();
    simplify(&mut schema);
    Arc::new(schema)
}

fn simplify(schema: &mut JsonObject) {
    schema.retain(|keyword, value| !(OMITTED.contains(&keyword.as_str()) && value.is_string()));
    // The server itself rejects unknown arguments, with a better message.
    schema.retain(|keyword, value| !(keyword == "additionalProperties" && value == false));
    for keyword in ["anyOf", "oneOf"] {
        if let Some(Value::Array(alternatives)) = schema.remove(keyword) {
            merge(schema, alternatives);
        }
    }
    if let Some(constant) = schema.remove("const") {
        schema.insert("enum".to_owned(), json!([constant]));
    }
    for keyword in ["type", "enum"] {
        let Some(Value::Array(values)) = schema.get_mut(keyword) else { continue };
        values.retain(|value| !value.is_null() && value != "null");
        if keyword == "type"
            && let [one] = &values[..]
        {
            let one = one.clone();
            schema.insert(keyword.to_owned(), one);
        }
    }
    if schema.get("type").is_some_and(|kind| kind == "object") {
        schema.entry("properties").or_insert_with(|| json!({}));
    }
    for (keyword, value) in schema {
        match (keyword.as_str(), value) {
            ("properties", Value::Object(properties)) => {
                properties.values_mut().filter_map(Value::as_object_mut).for_each(simplify);
            }
            ("items" | "additionalProperties", Value::Object(inner)) => simplify(inner),
            _ => {}
        }
    }
}

/// Merges the alternatives of a value into its schema: `null` is left out, and constants become one enumeration.
fn merge(schema: &mut JsonObject, alternatives: Vec<Value>) {
    let mut constants = Vec::new();
    for alternative in alternatives {
        let Value::Object(mut alternative) = alternative else { continue };
        simplify(&mut alternative);
        if let Some(Value::Array(values)) = alternative.remove("enum") {
            constants.extend(values);
        }
        if alternative.get("type").is_some_and(|kind| kind == "null") {
            continue;
        }
        // The description of the whole value is more general than that of an alternative.
        for (keyword, value) in alternative {
            schema.entry(keyword).or_insert(value);
        }
    }
    if !constants.is_empty() {
        schema.insert("enum".to_owned(), Value::Array(constants));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn optional_values_and_choices_have_one_type() {
        let schema = json!({
            "$schema": "x", "title": "T", "type": "object", "additionalProperties": false,
            "properties": {
                "format": {"type": ["number", "null"], "format": "double", "description": "d"},
                "encoding": {"description": "d", "anyOf": [
                    {"oneOf": [{"const": "a", "type": "string", "description": "x"}, {"const": "b", "type": "string"}]},
                    {"type": "null"},
                ]},
                "language": {"type": ["string", "null"], "enum": ["c", null]},
                "map": {"type": ["object", "null"], "additionalProperties": {"type": "string"}},
                "list": {"type": "array", "items": {"type": "object", "additionalProperties": false}},
            },
        });
        let expected = json!({
            "type": "object",
            "properties": {
                "format": {"type": "number", "description": "d"},
                "encoding": {"description": "d", "type": "string", "enum": ["a", "b"]},
                "language": {"type": "string", "enum": ["c"]},
                "map": {"type": "object", "properties": {}, "additionalProperties": {"type": "string"}},
                "list": {"type": "array", "items": {"type": "object", "properties": {}}},
            },
        });
        assert_eq!(*plain(schema.as_object().unwrap()), *expected.as_object().unwrap());
    }
}
