// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The ends of environments: on request, by a crash, when idle, at a shutdown, or during creation.

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use rmcp::model::{CallToolRequestParams, ClientRequest, Request};
use serde_json::json;
use tokio::time::Instant;

use crate::served::{Served, serve, serve_trouble, until};

async fn statuses(served: &Served) -> Vec<String> {
    let listed = served.call("list_environments", json!({})).await;
    listed["environments"].as_array().unwrap().iter().map(|one| one["status"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_create_takes_no_slot() {
    let served = serve_trouble(&["--max-environments", "1"]).await;
    for _ in 0..5 {
        served.refused("create_environment", json!({"language": "node"})).await;
    }
    assert_eq!(statuses(&served).await, [""; 0]);
    assert_eq!(served.machines_alive(), 0);
    served.create("python").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_create_is_undone() {
    let served = serve_trouble(&["--max-environments", "1"]).await;
    let params = CallToolRequestParams::new("create_environment")
        .with_arguments(json!({"language": "shell"}).as_object().unwrap().clone());
    let request = ClientRequest::CallToolRequest(Request::new(params));
    let handle = served.client.send_cancellable_request(request, Default::default()).await.unwrap();
    served.until_alive(1).await;
    assert_eq!(statuses(&served).await, ["creating"]);

    handle.cancel(None).await.unwrap();
    served.until_alive(0).await;
    // The slot of the cancelled environment is free again.
    served.create("python").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_create_holds_its_slot_until_the_machine_is_gone() {
    let served = serve_trouble(&["--max-environments", "1"]).await;
    let held = served.may_end.lock().await;
    let params = CallToolRequestParams::new("create_environment")
        .with_arguments(json!({"language": "shell"}).as_object().unwrap().clone());
    let request = ClientRequest::CallToolRequest(Request::new(params));
    let handle = served.client.send_cancellable_request(request, Default::default()).await.unwrap();
    served.until_alive(1).await;
    handle.cancel(None).await.unwrap();
    until("the environment is being destroyed", async || statuses(&served).await == ["destroying"]).await;
    let (text, kind) = served.refused("create_environment", json!({"language": "python"})).await;
    assert_eq!(kind, "capacity_reached", "{text}");
    assert_eq!(served.machines_alive(), 1);

    drop(held);
    until("the environment is gone", async || statuses(&served).await.is_empty()).await;
    assert_eq!(served.machines_alive(), 0);
    served.create("python").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn environment_can_be_destroyed_during_its_creation() {
    let served = serve_trouble(&[]).await;
    let create = served.refused("create_environment", json!({"language": "shell"}));
    let destroy = async {
        served.until_alive(1).await;
        let listed = served.call("list_environments", json!({})).await;
        let id = listed["environments"][0]["environment_id"].clone();
        let (text, kind) = served.refused("execute", json!({"environment_id": id, "code": "true"})).await;
        assert_eq!(kind, "environment_not_running", "{text}");
        served.call("destroy_environment", json!({"environment_id": id})).await
    };
    let ((_, kind), destroyed) = tokio::join!(create, destroy);
    assert_eq!((kind.as_str(), &destroyed["status"]), ("environment_destroyed", &json!("destroyed")));
    assert_eq!(served.machines_alive(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_environment_is_destroyed_and_a_busy_one_stays() {
    let served = serve(&["--reaper-interval", "20ms"]).await;
    // A timeout of 300 ms.
    let short = json!({"language": "shell", "timeout_minutes": 0.005});
    let id = served.call("create_environment", short).await["environment_id"].clone();
    let busy = served.call("execute", json!({"environment_id": id, "code": "sleep 1; echo alive"})).await;
    assert_eq!(busy["stdout"], "alive\n");
    served.until_alive(0).await;
    let (text, kind) = served.refused("execute", json!({"environment_id": id, "code": "true"})).await;
    assert_eq!(kind, "environment_destroyed");
    assert!(text.contains("because it reached its idle timeout"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_waits_for_calls_and_destroys_every_environment() {
    let mut served = serve(&[]).await;
    let id = served.create("shell").await;
    served.create("python").await;
    let (client, _) = crate::served::connect(&served.url).await;
    let arguments =
        json!({"environment_id": id, "code": "touch started; sleep 1; echo done"}).as_object().unwrap().clone();
    let running =
        tokio::spawn(
            async move { client.call_tool(CallToolRequestParams::new("execute").with_arguments(arguments)).await },
        );
    let files = async || served.call("list_files", json!({"environment_id": id})).await;
    until("the call has started", async || files().await["count"] != 0).await;
    let started = Instant::now();
    served.shut_down().await;
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    assert_eq!(served.machines_alive(), 0);
    let result = running.await.unwrap().unwrap();
    assert_eq!(result.structured_content.unwrap()["stdout"], "done\n");
    let refused = reqwest::get(served.url.replace("/mcp", "/healthz")).await.unwrap_err();
    assert!(refused.is_connect(), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn crashed_environment_has_status_error_and_holds_no_slot() {
    let served = serve(&["--max-environments", "1"]).await;
    let id = served.create("shell").await;
    // The caller gets a tool error, no matter whether the call or the server notices the crash first.
    served.faults.crashes.store(true, SeqCst);
    served.refused("write_file", json!({"environment_id": id, "path": "x", "content": ""})).await;
    until("the crash is detected", async || statuses(&served).await == ["error"]).await;
    let (text, kind) = served.refused("execute", json!({"environment_id": id, "code": "true"})).await;
    let hint = format!("environment {id} is not running: its machine failed; destroy it and create a new one");
    assert_eq!((text, kind.as_str()), (hint, "environment_not_running"));

    served.create("shell").await;
    assert_eq!(statuses(&served).await, ["error", "running"]);
    served.call("destroy_environment", json!({"environment_id": id})).await;
    assert_eq!(statuses(&served).await, ["running"]);
}
