// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The two kinds of error.
//!
//! What the caller can mend goes to the model as a tool result; what it cannot is a protocol error that names its
//! cause, and a line in the server's log.

use rmcp::{
    ErrorData,
    model::{CallToolResult, ContentBlock, JsonObject},
};

use serde_json::{Value, json};

use super::{arguments::SchemaFault, execution_tools::CommandResult};
use crate::{
    causes::chain,
    error_code::ErrorCode,
    service::{
        fault::{ArgumentFault, CallerFault, Fault, ServerFault},
        log_limit,
    },
};

/// Characters of an error that are logged: a chain of causes, each a line long.
const LOGGED_CHARS_MAX: usize = 2000;

/// Of the numbers that JSON-RPC leaves to servers (section 5.1 of its specification), for what may work a little later.
const SERVER_BUSY: rmcp::model::ErrorCode = rmcp::model::ErrorCode(-32000);

/// Why a tool has no result.
#[derive(Debug)]
pub(super) enum Failure {
    Arguments(SchemaFault),
    Service(Fault),
    /// A result could not be written as JSON.
    Result(serde_json::Error),
    UnknownTool,
    /// The code of a tool panicked.
    Panic,
}

impl Failure {
    /// Whether the call ended because its caller wanted it to.
    pub(super) fn is_cancelled(&self) -> bool {
        matches!(self, Self::Service(Fault::Caller(CallerFault::Cancelled { .. })))
    }
}

impl From<SchemaFault> for Failure {
    fn from(fault: SchemaFault) -> Self {
        Self::Arguments(fault)
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Service(fault)
    }
}

impl From<ArgumentFault> for Failure {
    fn from(fault: ArgumentFault) -> Self {
        Self::Service(fault.into())
    }
}

impl From<CallerFault> for Failure {
    fn from(fault: CallerFault) -> Self {
        Self::Service(fault.into())
    }
}

/// Answers a call that has failed.
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
        Failure::UnknownTool => Err(unknown_tool()),
        // The panic's own message went to standard error.
        Failure::Panic => Err(internal(tool, format!("{tool} panicked; the server's log has more"))),
    }
}

/// Answers a question for a task that there is not, or that is another's.
pub(super) fn unknown_task() -> ErrorData {
    let message = "there is no task of that id; a task is forgotten when its time is over";
    ErrorData::invalid_params(message, Some(data(ErrorCode::UnknownTask)))
}

/// Answers a question whose answer there is no room for.
pub(super) fn no_room(fault: &CallerFault) -> ErrorData {
    ErrorData::new(SERVER_BUSY, fault.to_string(), Some(data(fault.code())))
}

fn unknown_tool() -> ErrorData {
    let known: Vec<_> = super::tools().iter().map(|tool| &*tool.name).collect();
    let message = format!("there is no tool of that name; there are {}", known.join(", "));
    ErrorData::invalid_params(message, Some(data(ErrorCode::UnknownTool)))
}

/// What the `data` of a protocol error says.
#[must_use]
pub fn data(code: ErrorCode) -> Value {
    json!({"code": code.as_str(), "hint": code.hint()})
}

/// A sentence for the model, a word for programs, and what a command had come to that was stopped.
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
    match fault {
        // Each call of a guest that breaks the protocol ends here.
        ServerFault::Call { id, .. } => {
            if let Some(left_out) = log_limit::admitted(*id) {
                log(tool, &message, left_out);
            }
        }
        ServerFault::Start { .. } | ServerFault::Unowned { .. } => log(tool, &message, 0),
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
    tracing::error!(tool, message, left_out, "a tool failed");
}
