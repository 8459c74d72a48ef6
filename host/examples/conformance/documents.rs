// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The suite's resources and prompts.

use rmcp::{
    ErrorData,
    model::{GetPromptRequestParams, GetPromptResponse},
};
use serde_json::{Value, from_value, json};

use crate::messages::{complete, question};

/// An image of one red pixel.
pub(crate) const PNG: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg==";

pub(crate) fn resources() -> Value {
    let resource = |name: &str, kind: &str| {
        let uri = format!("test://{name}");
        json!({"uri": uri, "name": name, "description": "For the suite.", "mimeType": kind})
    };
    complete(json!({"resources": [
        resource("static-text", "text/plain"),
        resource("static-binary", "image/png"),
        resource("watched-resource", "text/plain"),
    ]}))
}

pub(crate) fn templates() -> Value {
    complete(json!({"resourceTemplates": [{
        "uriTemplate": "test://template/{id}/data",
        "name": "template",
        "description": "For the suite.",
        "mimeType": "application/json",
    }]}))
}

pub(crate) fn read(uri: &str) -> Option<Value> {
    let content = match uri {
        "test://static-text" | "test://watched-resource" => json!({
            "uri": uri,
            "mimeType": "text/plain",
            "text": "This is the content of the static text resource.",
        }),
        "test://static-binary" => json!({"uri": uri, "mimeType": "image/png", "blob": PNG}),
        _ => {
            let id = uri.strip_prefix("test://template/")?.strip_suffix("/data")?;
            let text = json!({"id": id, "templateTest": true, "data": format!("Data for ID: {id}")}).to_string();
            json!({"uri": uri, "mimeType": "application/json", "text": text})
        }
    };
    Some(complete(json!({"contents": [content]})))
}

pub(crate) fn prompts() -> Value {
    let prompt = |name: &str, arguments: &[&str]| {
        let arguments: Vec<_> = arguments
            .iter()
            .map(|name| json!({"name": name, "description": "For the suite.", "required": true}))
            .collect();
        json!({"name": name, "description": "For the suite.", "arguments": arguments})
    };
    complete(json!({"prompts": [
        prompt("test_simple_prompt", &[]),
        prompt("test_prompt_with_arguments", &["arg1", "arg2"]),
        prompt("test_prompt_with_embedded_resource", &["resourceUri"]),
        prompt("test_prompt_with_image", &[]),
        prompt("test_input_required_result_prompt", &[]),
    ]}))
}

pub(crate) fn prompt(request: &GetPromptRequestParams) -> Result<GetPromptResponse, ErrorData> {
    let argument = |name: &str| {
        let value = request.arguments.as_ref().and_then(|arguments| arguments.get(name));
        value.and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let text = |text: &str| json!({"type": "text", "text": text});
    let blocks = match request.name.as_str() {
        "test_simple_prompt" => vec![text("This is a simple prompt for testing.")],
        "test_prompt_with_arguments" => {
            vec![text(&format!("Prompt with arguments: arg1='{}', arg2='{}'", argument("arg1"), argument("arg2")))]
        }
        "test_prompt_with_embedded_resource" => {
            let resource = json!({
                "uri": argument("resourceUri"),
                "mimeType": "text/plain",
                "text": "Embedded resource content for testing.",
            });
            vec![json!({"type": "resource", "resource": resource}), text("Please process the embedded resource above.")]
        }
        "test_prompt_with_image" => {
            vec![
                json!({"type": "image", "data": PNG, "mimeType": "image/png"}),
                text("Please analyze the image above."),
            ]
        }
        "test_input_required_result_prompt" => {
            let answers = request.input_responses.clone().unwrap_or_default();
            match answers.get("user_context").and_then(|answer| answer["content"]["context"].as_str()) {
                Some(context) => vec![text(&format!("The context is {context}."))],
                None => {
                    let context = question("What context should the prompt use?", "context", "string");
                    let asked = json!({"resultType": "input_required", "inputRequests": {"user_context": context}});
                    return Ok(GetPromptResponse::InputRequired(from_value(asked).unwrap()));
                }
            }
        }
        _ => return Err(ErrorData::invalid_params("unknown prompt", None)),
    };
    let messages: Vec<_> = blocks.into_iter().map(|block| json!({"role": "user", "content": block})).collect();
    Ok(GetPromptResponse::Complete(from_value(complete(json!({"messages": messages}))).unwrap()))
}
