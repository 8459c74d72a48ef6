// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The two kinds of error in answers to calls.
//!
//! A fault of a tool call that the caller can fix is a tool result, which the model reads. An unknown tool or task is a
//! protocol error. A failure of the server is a protocol error with its cause, and a line in the server's log.

use rmcp::{
    ErrorData,
    model::{CallToolResult, ContentBlock, JsonObject},
};
use serde_json::{Value, json};
use waggle_shared::causes::chain;

use super::{
    arguments::{SchemaFault, shown},
    command_result::CommandResult,
};
use crate::{
    error_code::ErrorCode,
    service::{
        fault::{CallerFault, Fault, ServerFault},
        log_limit,
    },
};

/// Maximum number of characters of an error in the log: enough for an error and its causes, of one line each.
const LOGGED_CHARS_MAX: usize = 2000;

/// The JSON-RPC code of an error after which a retry may succeed. JSON-RPC leaves the meaning of this code to servers
/// (section 5.1 of its specification).
const SERVER_BUSY: rmcp::model::ErrorCode = rmcp::model::ErrorCode(-32000);

/// The result of a call.
pub(super) type Outcome = Result<CallToolResult, Failure>;

/// The reason why a call has no result.
#[derive(Debug)]
pub(super) enum Failure {
    Arguments(SchemaFault),
    Service(Fault),
    /// The result could not be written as JSON.
    Result(serde_json::Error),
    UnknownTool {
        available: String,
    },
    /// The code of the tool panicked.
    Panic,
}

impl Failure {
    /// Whether the caller cancelled the call.
    pub(super) fn is_cancelled(&self) -> bool {
        matches!(self, Self::Service(Fault::Caller(CallerFault::Cancelled { .. })))
    }
}

impl From<SchemaFault> for Failure {
    fn from(fault: SchemaFault) -> Self {
        Self::Arguments(fault)
    }
}

impl<F: Into<Fault>> From<F> for Failure {
    fn from(fault: F) -> Self {
        Self::Service(fault.into())
    }
}

/// Returns the answer to a failed call.
pub(super) fn into_reply(tool: &str, failure: Failure) -> Result<CallToolResult, ErrorData> {
    match failure {
        Failure::Arguments(fault) => Ok(for_caller(&fault.to_string(), ErrorCode::InvalidArgument, None)),
        Failure::Service(Fault::Caller(fault)) => {
            let stopped = fault.executed().map(CommandResult::of).map(serde_json::to_value).transpose();
            match stopped {
                Ok(stopped) => Ok(for_caller(&fault.to_string(), fault.code(), stopped)),
                Err(source) => into_reply(tool, Failure::Result(source)),
            }
        }
        Failure::Service(Fault::Server(fault)) => Err(for_operator(tool, &fault)),
        Failure::Result(source) => Err(internal(tool, format!("failed to write the result: {source}"))),
        Failure::UnknownTool { available } => Err(unknown_tool(tool, &available)),
        // The message of the panic went to standard error.
        Failure::Panic => Err(internal(tool, format!("{tool} panicked; see the server's log"))),
    }
}

/// The answer to a request for a task that does not exist or belongs to another principal.
pub(super) fn unknown_task() -> ErrorData {
    let message = "unknown task; a task is removed when its ttl has passed";
    ErrorData::invalid_params(message, Some(data(ErrorCode::UnknownTask)))
}

/// Returns the answer to a request for a task when no memory for the task's result is available.
pub(super) fn no_memory(fault: &CallerFault) -> ErrorData {
    ErrorData::new(SERVER_BUSY, fault.to_string(), Some(data(fault.code())))
}

fn unknown_tool(name: &str, available: &str) -> ErrorData {
    let message = format!("unknown tool \"{}\"; available: {available}", shown(name));
    ErrorData::invalid_params(message, Some(data(ErrorCode::UnknownTool)))
}

/// The `data` of a protocol error.
#[must_use]
pub fn data(code: ErrorCode) -> Value {
    json!({"code": code.as_str(), "hint": code.hint()})
}

/// Returns a tool result with a message for the model and a code for programs. If a command was stopped, the result
/// includes the command's output.
fn for_caller(message: &str, code: ErrorCode, stopped: Option<Value>) -> CallToolResult {
    let mut reply = CallToolResult::error(vec![ContentBlock::text(message)]);
    let mut object = match stopped {
        Some(Value::Object(object)) => object,
        Some(_) | None => JsonObject::new(),
    };
    let error = json!({"code": code.as_str(), "message": message, "hint": code.hint()});
    object.insert("error".to_owned(), error);
    reply.structured_content = Some(Value::Object(object));
    reply
}

fn for_operator(tool: &str, fault: &ServerFault) -> ErrorData {
    let message = chain(fault);
    let left_out = match fault {
        // A guest that breaks the protocol can cause such a fault with each call, so these log lines are rate-limited.
        ServerFault::Call { id, .. } => log_limit::admitted(*id),
        ServerFault::Start { .. } | ServerFault::Unowned { .. } => Some(0),
    };
    if let Some(left_out) = left_out {
        log(tool, &message, left_out);
    }
    ErrorData::internal_error(message, Some(data(fault.code())))
}

fn internal(tool: &str, message: String) -> ErrorData {
    log(tool, &message, 0);
    ErrorData::internal_error(message, Some(data(ErrorCode::Internal)))
}

fn log(tool: &str, message: &str, left_out: u64) {
    let end = message.char_indices().nth(LOGGED_CHARS_MAX).map_or(message.len(), |(at, _)| at);
    let message = message.get(..end).unwrap_or_default();
    tracing::error!(tool, error = message, left_out, "a tool failed");
}
