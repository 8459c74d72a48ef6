// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The suite's tools for tests of tasks. Most calls run as tasks; calls of `greet` never do. Some tasks request input
//! while they run. Waggle's own tasks never request input, so rmcp's task manager runs the tasks of the suite.

use std::time::Duration;

use rmcp::{
    ErrorData, RoleServer,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, ClientCapabilities, ContentBlock, CreateTaskResult,
        Tool,
    },
    service::RequestContext,
    task_manager::{TaskExit, TaskManager, TaskOptions},
};
use serde_json::{Value, from_value, json};
use tokio::time::sleep;

use crate::messages::question;

const NAMES: [&str; 7] = [
    "greet",
    "slow_compute",
    "failing_job",
    "protocol_error_job",
    "confirm_delete",
    "multi_input",
    "test_tool_with_task",
];

/// Duration of a failing job.
const FAILING: Duration = Duration::from_secs(1);

pub(crate) fn has(name: &str) -> bool {
    NAMES.contains(&name)
}

pub(crate) fn list() -> Vec<Tool> {
    let schema = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "label": {"type": "string"},
            "filename": {"type": "string"},
            "seconds": {"type": "number"},
        },
    });
    let tool = |name: &str| json!({"name": name, "description": "For the suite.", "inputSchema": schema});
    NAMES.into_iter().map(|name| from_value(tool(name)).unwrap()).collect()
}

pub(crate) async fn call(
    jobs: &TaskManager,
    request: CallToolRequestParams,
    context: RequestContext<RoleServer>,
) -> Result<CallToolResponse, ErrorData> {
    let arguments = Value::Object(request.arguments.unwrap_or_default());
    let text = |name: &str| arguments[name].as_str().unwrap_or_default().to_owned();
    let seconds = Duration::from_secs_f64(arguments["seconds"].as_f64().unwrap_or_default());
    let takes_tasks = context.client_capabilities().is_some_and(|can| can.supports_tasks());
    match &*request.name {
        "greet" => return Ok(text_result(&format!("Hello, {}!", text("name"))).into()),
        "slow_compute" if seconds.is_zero() || !takes_tasks => {
            sleep(seconds).await;
            return Ok(text_result("computed").into());
        }
        "test_tool_with_task" if request.input_responses.is_none() => {
            let name = question("What is your name?", "name", "string");
            let asked = json!({"resultType": "input_required", "inputRequests": {"user_name": name}});
            return Ok(CallToolResponse::InputRequired(from_value(asked).unwrap()));
        }
        _ if !takes_tasks => {
            let needed = ClientCapabilities::builder().enable_tasks().build();
            return Err(ErrorData::missing_required_client_capability(needed));
        }
        _ => {}
    }
    let user = request.input_responses.unwrap_or_default().get("user_name").cloned().unwrap_or_default();
    let user = user["content"]["name"].as_str().unwrap_or_default().to_owned();
    let name = request.name;
    let task = jobs.spawn(TaskOptions::new().with_poll_interval_ms(100), |job| {
        Box::pin(async move {
            let confirm = || from_value(question("Are you sure?", "confirm", "boolean")).unwrap();
            match &*name {
                "slow_compute" => tokio::select! {
                    () = sleep(seconds) => Ok(text_result("computed")),
                    () = job.cancelled() => Err(TaskExit::Cancelled),
                },
                "failing_job" => {
                    sleep(FAILING).await;
                    Ok(CallToolResult::error(vec![ContentBlock::text("This job fails.")]))
                }
                "protocol_error_job" => Err(ErrorData::internal_error("This job breaks.", None).into()),
                "confirm_delete" => {
                    job.request_input("confirm", confirm()).await?;
                    Ok(text_result("deleted"))
                }
                "multi_input" => {
                    tokio::try_join!(job.request_input("first", confirm()), job.request_input("second", confirm()))?;
                    Ok(text_result("received both answers"))
                }
                _ => Ok(text_result(&format!("Hello, {user}!"))),
            }
        })
    });
    Ok(CreateTaskResult::new(task).into())
}

fn text_result(text: &str) -> CallToolResult {
    CallToolResult::success(vec![ContentBlock::text(text)])
}
