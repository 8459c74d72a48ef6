// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Long calls of clients that accept tasks.

use std::time::Duration;

use rmcp::{
    ClientLifecycleMode, ClientServiceExt as _, RoleClient, ServiceError,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, CancelTaskParams, ClientCapabilities, ClientConfig,
        DetailedTask, GetTaskParams, Implementation, ProtocolVersion, Task, TaskPayload, TaskStatus, UpdateTaskParams,
    },
    service::RunningService,
    transport::{StreamableHttpClientTransport, streamable_http_client::StreamableHttpClientTransportConfig},
};
use serde_json::{Value, from_value, json};
use tokio::time::{Instant, timeout};

use crate::{
    cancelling::{WAITING, endless, started, until_gone},
    raw,
    served::{ADA, BOB, TIMEOUT, UNKNOWN_ID, serve, serve_guarded, serve_trouble, until},
};

/// A client that supports tasks, with or without a session.
struct Client(RunningService<RoleClient, ClientConfig>);

impl Client {
    async fn connect(url: &str, token: Option<&str>) -> Self {
        Self::connect_as(url, token, without_session()).await
    }

    async fn connect_as(url: &str, token: Option<&str>, mode: ClientLifecycleMode) -> Self {
        let mut config = StreamableHttpClientTransportConfig::with_uri(url);
        if let Some(token) = token {
            config = config.auth_header(token);
        }
        let transport = StreamableHttpClientTransport::from_config(config);
        Self(accepts_tasks().serve_with_lifecycle(transport, mode).await.unwrap())
    }

    async fn call(&self, tool: &'static str, arguments: Value) -> CallToolResponse {
        let call = CallToolRequestParams::new(tool).with_arguments(from_value(arguments).unwrap());
        timeout(TIMEOUT, self.0.call_tool_once(call)).await.unwrap().unwrap()
    }

    async fn begin(&self, tool: &'static str, arguments: Value) -> Task {
        let answer = self.call(tool, arguments).await;
        let CallToolResponse::Task(created) = answer else { panic!("not a task: {answer:?}") };
        created.task
    }

    async fn answer(&self, tool: &'static str, arguments: Value) -> CallToolResult {
        let answer = self.call(tool, arguments).await;
        let CallToolResponse::Complete(result) = answer else { panic!("not a result: {answer:?}") };
        result
    }

    async fn get(&self, id: &str) -> Result<DetailedTask, ServiceError> {
        self.0.get_task(GetTaskParams::new(id)).await.map(|got| got.task)
    }

    async fn cancel(&self, id: &str) -> Result<(), ServiceError> {
        self.0.cancel_task(CancelTaskParams::new(id)).await
    }

    async fn until_ended(&self, id: &str) -> DetailedTask {
        until("the task has ended", async || self.get(id).await.unwrap().status().is_terminal()).await;
        self.get(id).await.unwrap()
    }
}

fn accepts_tasks() -> ClientConfig {
    ClientConfig::new(ClientCapabilities::builder().enable_tasks().build(), Implementation::new("tests", "1"))
}

fn without_session() -> ClientLifecycleMode {
    ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::V_2026_07_28] }
}

fn completed(task: &DetailedTask) -> &serde_json::Map<String, Value> {
    let TaskPayload::Completed { result } = &task.payload else { panic!("not completed: {task:?}") };
    result
}

#[tokio::test(flavor = "multi_thread")]
async fn long_call_becomes_a_task_with_progress_and_a_result() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    let client = Client::connect(&served.url, None).await;
    let short = client.answer("execute", json!({"environment_id": id, "code": "echo well"})).await;
    assert_eq!(short.structured_content.unwrap()["stdout"], "well\n");
    // The command waits for two files.
    let code = "wait_for() { while [ ! -e $1 ]; do sleep 0.01; done; }; wait_for a; echo step-1; wait_for b; \
                echo step-2; exit 3";
    let task = client.begin("execute", json!({"environment_id": id, "code": code})).await;
    assert!(task.ttl_ms.is_some_and(|ttl| ttl > 300_000), "{task:?}");
    let working = client.get(&task.task_id).await.unwrap();
    assert_eq!((working.status(), &working.task.created_at), (TaskStatus::Working, &task.created_at));
    let message = working.task.status_message.unwrap();
    assert!(message.starts_with("running the code (") && message.ends_with(" s)"), "{message}");
    let go_on =
        async |path| served.call("write_file", json!({"environment_id": id, "path": path, "content": ""})).await;
    go_on("a").await;
    let message = async || client.get(&task.task_id).await.unwrap().task.status_message.unwrap();
    until("the first step is reported", async || message().await.ends_with(" s)\nstep-1\n")).await;
    go_on("b").await;
    let ended = client.until_ended(&task.task_id).await;
    let (result, object) = (completed(&ended), &completed(&ended)["structuredContent"]);
    assert_eq!((&object["stdout"], &object["exit_code"]), (&json!("step-1\nstep-2\n"), &json!(3)));
    assert_eq!((&result["isError"], &result["content"][0]["text"]), (&json!(false), &json!(object.to_string())));
    // Cancelling an ended task is allowed, and so is input that was not requested.
    client.cancel(&task.task_id).await.unwrap();
    client.0.update_task(UpdateTaskParams::new(&*task.task_id, [("a".to_owned(), json!({}))].into())).await.unwrap();
    assert_eq!(client.until_ended(&task.task_id).await.status(), TaskStatus::Completed);
}

#[tokio::test(flavor = "multi_thread")]
async fn client_without_tasks_gets_results() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    // The call is long enough to become a task.
    let arguments = json!({"environment_id": id, "code": "sleep 2.5; echo well"});
    let plain = async {
        let answer = raw::stateless_call(&served.url, "execute", &arguments, None).await;
        let answer: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        assert_eq!(answer["result"]["resultType"], "complete");
        answer["result"]["structuredContent"].clone()
    };
    // In a session, a task cannot be distinguished from a result, so the capability is ignored.
    let session = async {
        let client = Client::connect_as(&served.url, None, ClientLifecycleMode::Initialize).await;
        client.answer("execute", arguments.clone()).await.structured_content.unwrap()
    };
    let (plain, session) = tokio::join!(plain, session);
    assert_eq!((&plain["stdout"], &session["stdout"]), (&json!("well\n"), &json!("well\n")));
}

#[tokio::test(flavor = "multi_thread")]
async fn stdio_client_gets_tasks() {
    let served = serve(&[]).await;
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let story = async {
        let client = Client(accepts_tasks().serve_with_lifecycle(ours, without_session()).await.unwrap());
        let made = client.answer("create_environment", json!({"language": "shell"})).await.structured_content.unwrap();
        let id = &made["environment_id"];
        let code = "while [ ! -e go-on ]; do sleep 0.01; done; echo well";
        let task = client.begin("execute", json!({"environment_id": id, "code": code})).await;
        client.answer("write_file", json!({"environment_id": id, "path": "go-on", "content": ""})).await;
        let ended = client.until_ended(&task.task_id).await;
        assert_eq!(completed(&ended)["structuredContent"]["stdout"], "well\n");
        client.0.cancel().await.unwrap();
    };
    // The conversation ends when the client cancels its service.
    tokio::join!(served.converse(theirs), story);
}

#[tokio::test(flavor = "multi_thread")]
async fn task_outlives_its_connection_and_cancel_kills_its_command() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    let client = Client::connect(&served.url, None).await;
    let task = client.begin("execute", endless(&id, WAITING)).await;
    let leader = started(&served, &id).await;
    client.0.cancel().await.unwrap();
    let client = Client::connect(&served.url, None).await;
    assert_eq!(client.get(&task.task_id).await.unwrap().status(), TaskStatus::Working);
    client.cancel(&task.task_id).await.unwrap();
    until_gone(leader).await;
    assert_eq!(client.until_ended(&task.task_id).await.status(), TaskStatus::Cancelled);
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_the_request_kills_a_command_that_is_not_yet_a_task() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    let (url, arguments) = (served.url.clone(), endless(&id, WAITING));
    let accepts_tasks = json!({"extensions": {"io.modelcontextprotocol/tasks": {}}});
    let request = tokio::spawn(async move {
        raw::stateless_call_of(&url, &accepts_tasks, "execute", &arguments).await;
    });
    let leader = started(&served, &id).await;
    assert!(!request.is_finished(), "the call has become a task already");
    request.abort();
    until_gone(leader).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn task_of_another_caller_is_unknown() {
    let served = serve_guarded(&[]).await;
    let id = served.create("shell").await;
    let ada = Client::connect(&served.url, Some(ADA)).await;
    let bob = Client::connect(&served.url, Some(BOB)).await;
    let task = ada.begin("execute", endless(&id, WAITING)).await;
    let mut answers = Vec::new();
    for asked in [&*task.task_id, UNKNOWN_ID] {
        let update = UpdateTaskParams::new(asked, [].into());
        let faults = [
            bob.get(asked).await.unwrap_err(),
            bob.cancel(asked).await.unwrap_err(),
            bob.0.update_task(update).await.unwrap_err(),
        ];
        answers.push(faults.map(|fault| {
            let ServiceError::McpError(fault) = fault else { panic!("not an error of the server: {fault:?}") };
            (fault.code.0, fault.data.unwrap()["code"].take(), fault.message)
        }));
    }
    assert_eq!(answers[0], answers[1]);
    assert!(answers[0].iter().all(|(number, code, _)| (*number, code) == (-32602, &json!("unknown_task"))));
    assert_eq!(ada.get(&task.task_id).await.unwrap().status(), TaskStatus::Working);
}

#[tokio::test(flavor = "multi_thread")]
async fn task_counts_as_a_running_call() {
    let served = serve(&["--max-calls-per-principal", "1"]).await;
    let id = served.create("shell").await;
    let client = Client::connect(&served.url, None).await;
    let task = client.begin("execute", endless(&id, "sleep 1000")).await;
    let (_, code) = served.refused("list_environments", json!({})).await;
    assert_eq!(code, "too_many_calls");
    client.cancel(&task.task_id).await.unwrap();
    client.until_ended(&task.task_id).await;
    assert_eq!(served.call("list_environments", json!({})).await["count"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn destroying_the_environment_ends_its_tasks_with_an_error() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    let client = Client::connect(&served.url, None).await;
    let task = client.begin("execute", endless(&id, WAITING)).await;
    let leader = started(&served, &id).await;
    served.call("destroy_environment", json!({"environment_id": id})).await;
    let ended = client.until_ended(&task.task_id).await;
    let result = completed(&ended);
    let error = &result["_meta"]["waggle/error"];
    assert_eq!((&result["isError"], &error["code"]), (&json!(true), &json!("environment_destroyed")));
    until_gone(leader).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_the_task_of_a_create_undoes_it() {
    let served = serve_trouble(&[]).await;
    let client = Client::connect(&served.url, None).await;
    let task = client.begin("create_environment", json!({"language": "shell"})).await;
    served.until_alive(1).await;
    let message = client.get(&task.task_id).await.unwrap().task.status_message.unwrap();
    assert!(message.starts_with("booting the machine ("), "{message}");
    client.cancel(&task.task_id).await.unwrap();
    assert_eq!(client.until_ended(&task.task_id).await.status(), TaskStatus::Cancelled);
    served.until_alive(0).await;
    assert_eq!(served.call("list_environments", json!({})).await["count"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_does_not_wait_for_tasks() {
    let mut served = serve(&[]).await;
    let id = served.create("shell").await;
    let client = Client::connect(&served.url, None).await;
    client.begin("execute", endless(&id, WAITING)).await;
    let leader = started(&served, &id).await;
    let since = Instant::now();
    served.shut_down().await;
    // For ordinary calls the server would have waited up to 12 s.
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    until_gone(leader).await;
}
