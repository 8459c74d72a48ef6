// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The suite's tools that respond in one round.

use std::time::Duration;

use rmcp::{
    ErrorData, RoleServer,
    model::{
        CallToolRequestParams, CallToolResponse, ClientCapabilities, ProgressNotificationParam, ProtocolVersion,
        ServerNotification, ServerRequest, Tool,
    },
    service::RequestContext,
};
use serde_json::{Value, from_value, json};
use tokio::time::sleep;

use crate::{
    documents::PNG,
    listeners::Listeners,
    messages::{complete, question},
    rounds,
};

/// A WAV file without samples.
const WAV: &str = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQAAAAA=";

/// The pause between two steps, as the suite requires.
const STEP: Duration = Duration::from_millis(50);

const PLAIN: [&str; 16] = [
    "test_simple_text",
    "test_image_content",
    "test_audio_content",
    "test_embedded_resource",
    "test_multiple_content_types",
    "test_error_handling",
    "test_tool_with_progress",
    "test_tool_with_logging",
    "test_elicitation_sep1034_defaults",
    "test_elicitation_sep1330_enums",
    "test_reconnection",
    "test_missing_capability",
    "test_streaming_elicitation",
    "test_logging_tool",
    "test_trigger_tool_change",
    "test_trigger_prompt_change",
];

pub(crate) fn has(name: &str) -> bool {
    list().iter().any(|tool| tool.name == name)
}

pub(crate) fn list() -> Vec<Tool> {
    let no_arguments = json!({"type": "object", "properties": {}});
    let one = |name: &str| json!({"type": "object", "properties": {name: {"type": "string"}}, "required": [name]});
    let plain = PLAIN.iter().chain(rounds::NAMES).map(|name| (*name, no_arguments.clone()));
    let others = [
        ("test_sampling", one("prompt")),
        ("test_elicitation", one("message")),
        ("json_schema_2020_12_tool", schema_2020_12()),
        (
            "test_custom_header",
            json!({
                "type": "object",
                "properties": {"region": {"type": "string", "x-mcp-header": "Region"}},
                "required": ["region"],
            }),
        ),
    ];
    let tool = |(name, schema): (&str, Value)| {
        from_value(json!({"name": name, "description": "For the suite.", "inputSchema": schema})).unwrap()
    };
    plain.chain(others).map(tool).collect()
}

pub(crate) async fn call(
    listeners: &Listeners,
    request: CallToolRequestParams,
    context: RequestContext<RoleServer>,
) -> Result<CallToolResponse, ErrorData> {
    let argument = |name: &str| {
        let value = request.arguments.as_ref().and_then(|arguments| arguments.get(name));
        value.and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let image = json!({"type": "image", "data": PNG, "mimeType": "image/png"});
    let content = match &*request.name {
        "test_simple_text" => json!([text("This is a simple text response for testing.")]),
        "test_image_content" => json!([image]),
        "test_audio_content" => json!([{"type": "audio", "data": WAV, "mimeType": "audio/wav"}]),
        "test_embedded_resource" => {
            json!([resource("test://embedded-resource", "text/plain", "This is an embedded resource content.")])
        }
        "test_multiple_content_types" => {
            let data = r#"{"test":"data","value":123}"#;
            let mixed = resource("test://mixed-content-resource", "application/json", data);
            json!([text("Multiple content types test:"), image, mixed])
        }
        "test_error_handling" => {
            let content = json!([text("This tool intentionally returns an error for testing")]);
            return Ok(CallToolResponse::Complete(
                from_value(complete(json!({"content": content, "isError": true}))).unwrap(),
            ));
        }
        "test_tool_with_progress" => progress(&context).await,
        "test_tool_with_logging" | "test_logging_tool" => log(&context).await,
        "test_sampling" => sample(&context, &argument("prompt")).await?,
        "test_elicitation" => elicit(&context, "User response", &argument("message"), user()).await?,
        "test_elicitation_sep1034_defaults" => elicit(&context, "Elicitation completed", "?", defaults()).await?,
        "test_elicitation_sep1330_enums" => elicit(&context, "Elicitation completed", "?", enums()).await?,
        "test_missing_capability" => {
            let needed = ClientCapabilities::builder().enable_sampling().build();
            return Err(ErrorData::missing_required_client_capability(needed));
        }
        "test_streaming_elicitation" => {
            let name = question("What is your name?", "name", "string");
            let asked = json!({"resultType": "input_required", "inputRequests": {"user_name": name}});
            return Ok(CallToolResponse::InputRequired(from_value(asked).unwrap()));
        }
        "test_trigger_tool_change" => {
            listeners.announce("tools").await;
            json!([text("announced")])
        }
        "test_trigger_prompt_change" => {
            listeners.announce("prompts").await;
            json!([text("announced")])
        }
        _ => json!([text("done")]),
    };
    Ok(CallToolResponse::Complete(from_value(complete(json!({"content": content}))).unwrap()))
}

fn text(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

fn resource(uri: &str, kind: &str, text: &str) -> Value {
    json!({"type": "resource", "resource": {"uri": uri, "mimeType": kind, "text": text}})
}

async fn progress(context: &RequestContext<RoleServer>) -> Value {
    for done in [0.0, 50.0, 100.0] {
        if let Some(token) = context.meta.get_progress_token() {
            let note = ProgressNotificationParam::new(token, done).with_total(100.0);
            let _ = context.peer.notify_progress(note).await;
        }
        sleep(STEP).await;
    }
    json!([text("Sent progress.")])
}

/// Sends log messages. In the stateless protocol version, sends them only if the request contains a log level.
async fn log(context: &RequestContext<RoleServer>) -> Value {
    let modern = context.protocol_version().is_some_and(|version| version >= ProtocolVersion::V_2026_07_28);
    for line in ["Tool execution started", "Tool processing data", "Tool execution completed"] {
        if !modern || context.meta.log_level().is_some() {
            let note = json!({"method": "notifications/message", "params": {"level": "info", "data": line}});
            let note: ServerNotification = from_value(note).unwrap();
            let _ = context.peer.send_notification(note).await;
        }
        sleep(STEP).await;
    }
    json!([text("Logged.")])
}

async fn sample(context: &RequestContext<RoleServer>, prompt: &str) -> Result<Value, ErrorData> {
    let messages = json!([{"role": "user", "content": text(prompt)}]);
    let answer = ask(context, "sampling/createMessage", json!({"messages": messages, "maxTokens": 100})).await?;
    Ok(json!([text(&format!("LLM response: {}", answer["content"]["text"].as_str().unwrap_or_default()))]))
}

async fn elicit(
    context: &RequestContext<RoleServer>,
    heading: &str,
    message: &str,
    schema: Value,
) -> Result<Value, ErrorData> {
    let params = json!({"mode": "form", "message": message, "requestedSchema": schema});
    let answer = ask(context, "elicitation/create", params).await?;
    Ok(json!([text(&format!("{heading}: action={}, content={}", answer["action"], answer["content"]))]))
}

/// Sends a request to the client. Only older protocol versions allow such requests.
async fn ask(context: &RequestContext<RoleServer>, method: &str, params: Value) -> Result<Value, ErrorData> {
    let request: ServerRequest = from_value(json!({"method": method, "params": params}))
        .map_err(|fault| ErrorData::internal_error(fault.to_string(), None))?;
    let answer = context.peer.send_request(request).await;
    let answer = answer.map_err(|fault| ErrorData::invalid_request(fault.to_string(), None))?;
    Ok(serde_json::to_value(answer).unwrap())
}

fn user() -> Value {
    json!({
        "type": "object",
        "properties": {
            "username": {"type": "string", "description": "User's response"},
            "email": {"type": "string", "description": "User's email address"},
        },
        "required": ["username", "email"],
    })
}

fn defaults() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "default": "John Doe"},
            "age": {"type": "integer", "default": 30},
            "score": {"type": "number", "default": 95.5},
            "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
            "verified": {"type": "boolean", "default": true},
        },
    })
}

fn enums() -> Value {
    let plain = ["option1", "option2", "option3"];
    let titled = |titles: [&str; 3]| {
        let pairs = ["value1", "value2", "value3"].into_iter().zip(titles);
        pairs.map(|(value, title)| json!({"const": value, "title": title})).collect::<Vec<_>>()
    };
    json!({
        "type": "object",
        "properties": {
            "untitledSingle": {"type": "string", "enum": plain},
            "titledSingle": {"type": "string", "oneOf": titled(["First Option", "Second Option", "Third Option"])},
            "legacyEnum": {
                "type": "string",
                "enum": ["opt1", "opt2", "opt3"],
                "enumNames": ["Option One", "Option Two", "Option Three"],
            },
            "untitledMulti": {"type": "array", "items": {"type": "string", "enum": plain}},
            "titledMulti": {
                "type": "array",
                "items": {"anyOf": titled(["First Choice", "Second Choice", "Third Choice"])},
            },
        },
    })
}

fn schema_2020_12() -> Value {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "$defs": {"address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }},
        "properties": {
            "name": {"type": "string"},
            "address": {"$ref": "#/$defs/address"},
            "contactMethod": {"type": "string", "enum": ["phone", "email"]},
            "phone": {"type": "string"},
            "email": {"type": "string"},
        },
        "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
        "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
        "then": {"required": ["phone"]},
        "else": {"required": ["email"]},
        "additionalProperties": false,
    })
}
