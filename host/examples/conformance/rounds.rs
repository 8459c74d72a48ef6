// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The suite's tools that request input from the client in several rounds. Each result asks questions. The next call
//! contains the answers, and the number of the round with a keyed hash.

use rmcp::{
    ErrorData, RoleServer,
    model::{CallToolRequestParams, CallToolResponse},
    service::RequestContext,
};
use serde_json::{Value, from_value, json};
use sha2::{Digest as _, Sha256};

use crate::messages::{complete, question};

pub(crate) const NAMES: &[&str] = &[
    "test_input_required_result_elicitation",
    "test_input_required_result_sampling",
    "test_input_required_result_list_roots",
    "test_input_required_result_request_state",
    "test_input_required_result_multiple_inputs",
    "test_input_required_result_multi_round",
    "test_input_required_result_tampered_state",
    "test_input_required_result_capabilities",
];

pub(crate) fn has(name: &str) -> bool {
    NAMES.contains(&name)
}

fn sampling(prompt: &str) -> Value {
    let messages = json!([{"role": "user", "content": {"type": "text", "text": prompt}}]);
    json!({"method": "sampling/createMessage", "params": {"messages": messages, "maxTokens": 100}})
}

fn roots() -> Value {
    json!({"method": "roots/list", "params": {}})
}

/// Returns a round's number with a keyed hash that only this server can compute.
fn seal(round: u32) -> String {
    let key = "a key that protects nothing real";
    format!("{round}-{:x}", Sha256::digest(format!("{key}{round}")))
}

pub(crate) fn call(
    request: CallToolRequestParams,
    context: &RequestContext<RoleServer>,
) -> Result<CallToolResponse, ErrorData> {
    let round = match request.request_state.as_deref() {
        Some(sealed) => {
            let ours = (0..=2).find(|round| seal(*round) == sealed);
            ours.ok_or_else(|| ErrorData::invalid_params("invalid request state", None))?
        }
        None => 0,
    };
    let answers = request.input_responses.unwrap_or_default();
    let answered = |name: &str| answers.get(name).filter(|answer| answer.is_object());
    let ask = |questions: Value, next_round: Option<u32>| {
        let mut asked = json!({"resultType": "input_required", "inputRequests": questions});
        if let Some(round) = next_round {
            asked["requestState"] = seal(round).into();
        }
        Ok(CallToolResponse::InputRequired(from_value(asked).unwrap()))
    };
    match &*request.name {
        "test_input_required_result_elicitation" => match answered("user_name") {
            Some(answer) if answer["content"]["name"].is_string() => {
                answer_with(&format!("Hello, {}!", answer["content"]["name"].as_str().unwrap()))
            }
            _ => ask(json!({"user_name": question("What is your name?", "name", "string")}), None),
        },
        "test_input_required_result_sampling" => match answered("capital_question") {
            Some(answer) => answer_with(answer["content"]["text"].as_str().unwrap_or_default()),
            None => ask(json!({"capital_question": sampling("What is the capital of France?")}), None),
        },
        "test_input_required_result_list_roots" => match answered("client_roots") {
            Some(answer) => answer_with(&format!("The roots are {}.", answer["roots"])),
            None => ask(json!({"client_roots": roots()}), None),
        },
        "test_input_required_result_request_state" | "test_input_required_result_tampered_state" => {
            match answered("confirm") {
                Some(_) if round == 1 => answer_with("state-ok"),
                _ => ask(json!({"confirm": question("Please confirm", "ok", "boolean")}), Some(1)),
            }
        }
        "test_input_required_result_multiple_inputs" => {
            let questions = json!({
                "user_name": question("What is your name?", "name", "string"),
                "greeting": sampling("Generate a greeting"),
                "client_roots": roots(),
            });
            match ["user_name", "greeting", "client_roots"].into_iter().all(|name| answered(name).is_some()) {
                true => answer_with("Received all answers."),
                false => ask(questions, Some(1)),
            }
        }
        "test_input_required_result_multi_round" => match round {
            1 if answered("step1").is_some() => {
                ask(json!({"step2": question("Step 2: What is your favorite color?", "color", "string")}), Some(2))
            }
            2 if answered("step2").is_some() => answer_with("Received all answers."),
            _ => ask(json!({"step1": question("Step 1: What is your name?", "name", "string")}), Some(1)),
        },
        _ => {
            let has = serde_json::to_value(context.client_capabilities()).unwrap_or_default();
            let mut questions = json!({});
            if has["sampling"].is_object() {
                questions["greeting"] = sampling("Generate a greeting");
            }
            if has["elicitation"].is_object() {
                questions["user_name"] = question("What is your name?", "name", "string");
            }
            ask(questions, None)
        }
    }
}

fn answer_with(text: &str) -> Result<CallToolResponse, ErrorData> {
    Ok(CallToolResponse::Complete(from_value(complete(json!({"content": [{"type": "text", "text": text}]}))).unwrap()))
}
