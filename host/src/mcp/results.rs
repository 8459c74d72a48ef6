// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Writes results: one JSON object, as text and as structured content.

use std::{sync::Arc, time::SystemTime};

use jiff::Timestamp;
use rmcp::model::{CallToolResult, ContentBlock, JsonObject, Tool, ToolAnnotations};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::errors::Failure;
use crate::telemetry::STAGES;

/// The object as text (keys sorted, two-space indent) and as structured content.
pub(super) fn object(result: &impl Serialize) -> Result<CallToolResult, Failure> {
    let _writing = tracing::debug_span!(target: STAGES, "result").entered();
    // A JSON value keeps its keys sorted, whatever their order in the type.
    let value = serde_json::to_value(result).map_err(Failure::Result)?;
    let text = serde_json::to_string_pretty(&value).map_err(Failure::Result)?;
    let mut reply = CallToolResult::structured(value);
    reply.content = vec![ContentBlock::text(text)];
    Ok(reply)
}

/// A tool whose schemas are those of its arguments and of its result.
pub(super) fn tool<A: JsonSchema + 'static>(
    name: &'static str,
    title: &'static str,
    description: &'static str,
    hints: ToolAnnotations,
) -> Tool {
    let tool = Tool::new(name, description, Arc::new(JsonObject::new())).with_input_schema::<A>();
    let input_schema = plain(&tool.input_schema);
    let mut tool = tool.with_title(title).with_annotations(hints);
    tool.input_schema = input_schema;
    tool
}

/// Adds the schema of the tool's result.
pub(super) fn with_result<R: JsonSchema + 'static>(tool: Tool) -> Tool {
    let tool = tool.with_output_schema::<R>();
    let schema = tool.output_schema.as_deref().map(plain);
    match schema {
        Some(schema) => tool.with_raw_output_schema(schema),
        None => tool,
    }
}

/// Leaves out the formats of numbers (`uint64`, `double`): validators that do not know them complain.
fn plain(schema: &JsonObject) -> Arc<JsonObject> {
    let mut value = Value::Object(schema.clone());
    strip_formats(&mut value);
    match value {
        Value::Object(schema) => Arc::new(schema),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => Arc::default(),
    }
}

fn strip_formats(value: &mut Value) {
    match value {
        Value::Object(object) => {
            if object.get("format").is_some_and(Value::is_string) {
                object.remove("format");
            }
            object.values_mut().for_each(strip_formats);
        }
        Value::Array(array) => array.iter_mut().for_each(strip_formats),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// A time as RFC 3339 has it, in seconds and UTC; the epoch for what no calendar can hold.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    rfc3339_unix(i64::try_from(seconds).unwrap_or_default())
}

/// The same for seconds since the epoch, which a guest may have made up.
pub(super) fn rfc3339_unix(seconds: i64) -> String {
    Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH).to_string()
}

/// Type and permissions as `ls -l` shows them: `-rwxr-xr-x`.
pub(super) fn mode_text(mode: u32) -> String {
    let kind = match mode & 0o170_000 {
        0o040_000 => 'd',
        0o120_000 => 'l',
        0o020_000 => 'c',
        0o060_000 => 'b',
        0o010_000 => 'p',
        0o140_000 => 's',
        _ => '-',
    };
    let letters = (0..9).map(|index| {
        let letter = ['r', 'w', 'x'].into_iter().cycle().nth(index).unwrap_or('-');
        if mode & (0o400 >> index) == 0 { '-' } else { letter }
    });
    let mut text: Vec<char> = std::iter::once(kind).chain(letters).collect();
    for (bit, position, letter) in [(0o4000, 3, 's'), (0o2000, 6, 's'), (0o1000, 9, 't')] {
        if let Some(place) = text.get_mut(position).filter(|_| mode & bit != 0) {
            *place = if *place == 'x' { letter } else { letter.to_ascii_uppercase() };
        }
    }
    text.into_iter().collect()
}

/// True for a folder's mode.
pub(super) fn is_folder(mode: u32) -> bool {
    mode & 0o170_000 == 0o040_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_read_as_ls_writes_them() {
        for (mode, text) in [
            (0o100_644, "-rw-r--r--"),
            (0o100_755, "-rwxr-xr-x"),
            (0o040_755, "drwxr-xr-x"),
            (0o120_777, "lrwxrwxrwx"),
            (0o104_755, "-rwsr-xr-x"),
            (0o102_644, "-rw-r-Sr--"),
            (0o041_777, "drwxrwxrwt"),
        ] {
            assert_eq!(mode_text(mode), text);
        }
    }

    #[test]
    fn times_are_in_seconds_and_utc() {
        assert_eq!(rfc3339_unix(1_700_000_000), "2023-11-14T22:13:20Z");
        assert_eq!(rfc3339_unix(i64::MAX), "1970-01-01T00:00:00Z");
    }

    #[test]
    fn a_results_text_has_sorted_keys_and_two_spaces() {
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
