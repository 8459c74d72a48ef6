// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Writes the result of a tool: one JSON object, as text and as structured content, in a size that clients can read.

use std::io::{self, Write};

use rmcp::model::{CallToolResult, ContentBlock};
use serde::Serialize;

use super::{
    failure::{Failure, Outcome},
    json_size::{NODE_BYTES, value_bytes},
};
use crate::telemetry::STAGES;

/// Maximum size of a result in bytes, as it is written in an event of the answer. The rest of the event is small.
/// The Python client loses events above 1 MiB.
pub(super) const EVENT_BYTES_MAX: usize = 990_000;

/// Maximum memory of a result until its answer has been sent: the result itself, which is no longer than its written
/// form, and the written form. The result of a listing is larger, see `file_tools`.
pub(super) const RESULT_BYTES_MAX: usize = 2 * EVENT_BYTES_MAX + RESULT_BYTES_MIN;

/// Memory of the rest of a result and its answer, apart from the data of a guest.
const RESULT_BYTES_MIN: usize = 8 * 1024;

/// Memory of a result and its written form for each byte of an output. In JSON a byte may have six characters. The text
/// of a result is JSON itself, with 6 characters, which are written with 7; the structured content has 3 bytes at most,
/// and is written with 6.
const BYTES_PER_OUTPUT_BYTE: usize = 22;

/// Returns the maximum memory of a result with this size of output, as the guest sent it.
pub(super) fn bytes_max(output_bytes: usize) -> usize {
    output_bytes.saturating_mul(BYTES_PER_OUTPUT_BYTE).saturating_add(RESULT_BYTES_MIN).min(RESULT_BYTES_MAX)
}

/// Returns the memory of a result until its answer has been sent: of the result, which a session keeps, and of its
/// written form.
pub(super) fn result_bytes(result: &CallToolResult) -> usize {
    let block = |block: &ContentBlock| match block.as_text() {
        Some(text) => NODE_BYTES + text.text.len(),
        None => NODE_BYTES + written_bytes(block),
    };
    let content: usize = result.content.iter().map(block).sum();
    content + result.structured_content.as_ref().map_or(0, value_bytes) + written_bytes(result)
}

/// Writes an object as compact JSON text with sorted keys, and as structured content.
pub(super) fn object(result: &impl Serialize) -> Outcome {
    let _writing = tracing::debug_span!(target: STAGES, "result").entered();
    // A JSON value sorts its keys; the order of the fields in the type does not matter.
    let value = serde_json::to_value(result).map_err(Failure::Result)?;
    let text = serde_json::to_string(&value).map_err(Failure::Result)?;
    let mut reply = CallToolResult::structured(value);
    reply.content = vec![ContentBlock::text(text)];
    Ok(reply)
}

/// Writes a list of `length` items as an object. `with_first` returns the object with only the first items; it is
/// called with fewer items until the result fits into one event.
pub(super) fn list<R: Serialize>(length: usize, with_first: impl Fn(usize) -> R) -> Outcome {
    let mut count = length;
    loop {
        let result = object(&with_first(count))?;
        let bytes = written_bytes(&result);
        if bytes <= EVENT_BYTES_MAX || count == 0 {
            return Ok(result);
        }
        count = shrunk(count, bytes);
    }
}

/// Returns the next amount to try if `amount` was written in `bytes` bytes, which are too many.
pub(super) fn shrunk(amount: usize, bytes: usize) -> usize {
    // A little less than the proportional amount, so that one more attempt is mostly enough.
    let proportional = amount as u128 * EVENT_BYTES_MAX as u128 / (bytes as u128).max(1);
    usize::try_from(proportional * 15 / 16).unwrap_or(amount).min(amount.saturating_sub(1))
}

/// Returns the size of a value as JSON.
pub(super) fn written_bytes(value: &impl Serialize) -> usize {
    struct Counter(usize);

    impl Write for Counter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let mut counter = Counter(0);
    // A value that cannot be written is not sent either.
    let _ = serde_json::to_writer(&mut counter, value);
    counter.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_compact_with_sorted_keys() {
        #[derive(Serialize)]
        struct Result {
            b: u32,
            a: &'static str,
        }
        let reply = object(&Result { b: 1, a: "x" }).unwrap();
        assert_eq!(reply.content[0].as_text().unwrap().text, r#"{"a":"x","b":1}"#);
        assert_eq!(reply.structured_content, Some(serde_json::json!({"a": "x", "b": 1})));
    }

    #[test]
    fn list_is_cut_to_one_event() {
        let names: Vec<_> = (0..20_000).map(|number| format!("\"{number:032}\u{1}")).collect();
        let result = list(names.len(), |count| names[..count].to_vec()).unwrap();
        assert!((EVENT_BYTES_MAX / 2..=EVENT_BYTES_MAX).contains(&written_bytes(&result)));
        let kept = result.structured_content.unwrap();
        assert_eq!(kept.as_array().unwrap()[..], names[..kept.as_array().unwrap().len()]);
        let short = list(2, |count| names[..count].to_vec()).unwrap();
        assert_eq!(short.structured_content.unwrap().as_array().unwrap().len(), 2);
    }
}
