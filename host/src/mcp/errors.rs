// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The two kinds of error in answers to calls.
//!
//! A fault that the caller can fix, or answer with another environment, is a tool result, which the model reads. An
//! unknown tool or task, and a failure inside the server, is a protocol error: many clients end the model's whole run
//! at a protocol error.

use rmcp::{
    ErrorData,
    model::{CallToolResult, ContentBlock, MetaObject},
};
use serde_json::{Value, json};
use waggle_shared::causes::chain;

use super::{
    arguments::shown,
    command_result::CommandResult,
    failure::{Failure, Outcome},
};
use crate::{
    domain::principal::Principal,
    error_code::ErrorCode,
    log_limit::{self, Kind},
    service::fault::{CallerFault, Fault, ServerFault},
};

/// The JSON-RPC code of an error after which a retry may succeed. JSON-RPC leaves the meaning of this code to servers
/// (section 5.1 of its specification).
const SERVER_BUSY: rmcp::model::ErrorCode = rmcp::model::ErrorCode(-32000);

/// Returns the answer to a failed call.
pub(super) fn into_reply(tool: &str, caller: &Principal, failure: Failure) -> Result<CallToolResult, ErrorData> {
    match failure {
        Failure::Arguments(fault) => Ok(for_caller(&fault.to_string(), ErrorCode::InvalidArgument, false)),
        Failure::Service(Fault::Caller(fault)) => {
            let reply = for_caller(&fault.to_string(), fault.code(), !fault.has_advice());
            let Some(executed) = fault.executed() else { return Ok(reply) };
            CommandResult::write(executed, |result| with_result(&reply, &result))
                .or_else(|failure| into_reply(tool, caller, failure))
        }
        Failure::Service(Fault::Server(fault)) => {
            log_fault(tool, caller, &chain(&fault), &fault);
            let message = fault.for_client();
            match fault {
                // The caller can create another environment, or retry.
                ServerFault::Start { .. }
                | ServerFault::Call { .. }
                | ServerFault::Snapshot { .. }
                | ServerFault::Save { .. }
                | ServerFault::Resume { .. }
                | ServerFault::Restore { .. }
                | ServerFault::Remove { .. }
                | ServerFault::Destroy { .. } => Ok(for_caller(&message, fault.code(), true)),
                ServerFault::Unowned { .. } => Err(ErrorData::internal_error(message, Some(data(fault.code())))),
            }
        }
        Failure::Result(source) => Err(internal(tool, caller, format!("failed to write the result: {source}"))),
        Failure::UnknownTool { available } => Err(unknown_tool(tool, &available)),
        // The panic hook wrote the panic's message to standard error, where the log goes as well.
        Failure::Panic => Err(internal(tool, caller, format!("{tool} panicked; see the server's log"))),
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

/// Returns the answer to a request whose principal is missing.
pub(super) fn no_principal() -> ErrorData {
    let message = "the request arrived without its caller; this is a bug".to_owned();
    internal("request", &Principal::anonymous(), message)
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

/// The key in `_meta` with the code, the message and the hint of an error. They are not in the structured content,
/// because clients reject structured content that does not match the tool's schema.
const ERROR_META: &str = "waggle/error";

/// Returns a tool result with a message for the model, and with the code's hint if the message has no advice. Most
/// clients show a model only the text.
fn for_caller(message: &str, code: ErrorCode, with_hint: bool) -> CallToolResult {
    let text = if with_hint { format!("{message}\n{}", code.hint()) } else { message.to_owned() };
    let mut meta = MetaObject::default();
    let error = json!({"code": code.as_str(), "message": message, "hint": code.hint()});
    meta.0.insert(ERROR_META.to_owned(), error);
    CallToolResult::error(vec![ContentBlock::text(text)]).with_meta(Some(meta))
}

/// Adds the result of a stopped command to an error.
fn with_result(error: &CallToolResult, result: &CommandResult<'_>) -> Outcome {
    let outputs = [("stdout", &result.stdout), ("stderr", &result.stderr)];
    let outputs = outputs.into_iter().filter(|(_, output)| !output.is_empty());
    let outputs = outputs.map(|(name, output)| format!("\n{name} until then:\n{output}"));
    let more: String = outputs.chain(result.hint.iter().map(|hint| format!("\n{hint}"))).collect();
    let message = error.content.iter().find_map(ContentBlock::as_text).map(|text| text.text.as_str());
    let message = message.unwrap_or_default();
    let mut structured = serde_json::to_value(result).map_err(Failure::Result)?;
    // Some clients show a model only the structured content.
    if let Some(object) = structured.as_object_mut() {
        let hint = std::iter::once(message).chain(result.hint).collect::<Vec<_>>().join("\n");
        object.insert("hint".to_owned(), Value::String(hint));
    }
    let mut reply = error.clone();
    reply.content = vec![ContentBlock::text(message.to_owned() + &more)];
    reply.structured_content = Some(structured);
    Ok(reply)
}

/// Logs a fault for the operator. Guests and callers can cause faults again and again, so the lines are limited.
fn log_fault(tool: &str, caller: &Principal, message: &str, fault: &ServerFault) {
    let left_out = match fault {
        ServerFault::Call { id, .. } => log_limit::admitted(*id),
        ServerFault::Start { .. } | ServerFault::Resume { .. } | ServerFault::Restore { .. } => {
            log_limit::admitted_of(caller, Kind::Start)
        }
        ServerFault::Snapshot { .. }
        | ServerFault::Save { .. }
        | ServerFault::Remove { .. }
        | ServerFault::Destroy { .. } => log_limit::admitted_of(caller, Kind::Machine),
        ServerFault::Unowned { .. } => log_limit::admitted_of(caller, Kind::Server),
    };
    if let Some(left_out) = left_out {
        log(tool, message, left_out);
    }
}

fn internal(tool: &str, caller: &Principal, message: String) -> ErrorData {
    if let Some(left_out) = log_limit::admitted_of(caller, Kind::Server) {
        log(tool, &message, left_out);
    }
    ErrorData::internal_error(message, Some(data(ErrorCode::Internal)))
}

fn log(tool: &str, message: &str, left_out: u64) {
    tracing::error!(tool, error = message, left_out, "a tool failed");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{call_fault::CallFault, environment_id::EnvironmentId},
        error_code::Place,
    };

    /// docs/errors.md lists the codes by their place.
    #[test]
    fn answers_put_each_code_in_its_place() {
        let id: EnvironmentId = "123e4567-e89b-42d3-a456-426614174000".parse().unwrap();
        let source = || CallFault::Protocol { source: "nonsense".into() };
        for failure in [
            Failure::Service(Fault::Server(ServerFault::Call { operation: "run the code", id, source: source() })),
            Failure::Service(Fault::Server(ServerFault::Unowned { id })),
            Failure::Service(Fault::Caller(CallerFault::ShuttingDown)),
            Failure::UnknownTool { available: String::new() },
            Failure::Panic,
        ] {
            let shown = format!("{failure:?}");
            let (place, code) = match into_reply("execute", &Principal::local(), failure) {
                Ok(result) => (Place::Result, result.meta.unwrap().0[ERROR_META]["code"].clone()),
                Err(error) => (Place::Protocol, error.data.unwrap()["code"].clone()),
            };
            let code = ErrorCode::ALL.iter().find(|known| code == known.as_str()).unwrap();
            assert_eq!(code.place(), place, "{shown}");
        }
    }
}
