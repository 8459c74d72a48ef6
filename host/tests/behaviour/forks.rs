// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Forks of environments. The machines of these tests have snapshots of their files, without their memory.

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use rmcp::model::{CallToolRequestParams, ClientRequest, Request};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::{
    lasting::statuses,
    served::{BOB, Served, call, connect_as, serve, serve_guarded, until},
};

/// Time for a request to arrive at its environment.
const ARRIVAL: Duration = Duration::from_millis(300);

async fn fork(served: &Served, source: &str) -> Value {
    served.call("create_environment", json!({"fork_of": source})).await
}

async fn write(served: &Served, id: &str, content: &str) {
    served.call("write_file", json!({"environment_id": id, "path": "kept", "content": content})).await;
}

async fn cat(served: &Served, id: &str) -> Value {
    served.call("execute", json!({"environment_id": id, "code": "cat kept"})).await["stdout"].clone()
}

fn id(created: &Value) -> &str {
    created["environment_id"].as_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn fork_has_the_files_of_its_source_and_both_go_on() {
    let served = serve(&[]).await;
    let arguments = json!({
        "language": "shell", "timeout_minutes": 7, "network": "deny 192.0.2.0/24, public", "name": "source",
        "environment": {"COLOUR": "red"}, "memory_mb": 256,
    });
    let source = served.call("create_environment", arguments).await;
    let source = id(&source);
    write(&served, source, "before").await;
    let forked = fork(&served, source).await;
    let expected = json!({"runtime": "shell", "timeout": "7m0s", "status": "running", "memory_mb": 256});
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&forked[key], value, "{forked}");
    }
    // These machines have no memory in their snapshots.
    assert_eq!(forked["memory"], false);
    assert!(forked["name"].as_str().unwrap().starts_with("shell-"), "{forked}");
    let forked = id(&forked);
    assert_eq!(cat(&served, forked).await, "before");
    let colour = json!({"environment_id": forked, "code": "echo $COLOUR"});
    assert_eq!(served.call("execute", colour).await["stdout"], "red\n");

    write(&served, forked, "in the fork").await;
    write(&served, source, "in the source").await;
    let again = fork(&served, forked).await;
    served.call("destroy_environment", json!({"environment_id": forked})).await;
    assert_eq!(cat(&served, source).await, "in the source");
    assert_eq!(cat(&served, id(&again)).await, "in the fork");
    assert_eq!(statuses(&served).await, ["running", "running"]);
    assert_eq!(served.machines_alive(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn fork_during_calls_is_an_error_unless_it_waits() {
    let served = serve(&[]).await;
    let source = served.create("shell").await;
    let running = json!({"environment_id": source, "code": "touch started; while [ ! -e end ]; do sleep 0.05; done"});
    let call = served.call("execute", running);
    let forks = async {
        let list = json!({"environment_id": source});
        until("the call runs", async || served.call("list_files", list.clone()).await["count"] != 0).await;
        let (text, code) = served.refused("create_environment", json!({"fork_of": source})).await;
        assert_eq!(code, "calls_running", "{text}");
        assert!(text.contains("runs 1 calls") && text.contains("wait: true"), "{text}");
        let (text, code) =
            served.refused("destroy_environment", json!({"environment_id": source, "save_as": "a"})).await;
        assert_eq!(code, "calls_running", "{text}");
        assert!(text.contains("was not destroyed"), "{text}");
        let waits = served.call("create_environment", json!({"fork_of": source, "wait": true}));
        let ends = async {
            sleep(ARRIVAL).await;
            // A fork that waits does not delay other calls.
            served.call("write_file", json!({"environment_id": source, "path": "end", "content": ""})).await;
        };
        tokio::join!(waits, ends).0
    };
    let (_, forked) = tokio::join!(call, forks);
    let files = served.call("list_files", json!({"environment_id": id(&forked)})).await;
    assert_eq!(files["count"], 2, "{files}");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_wait_while_the_source_stands_still() {
    let served = serve(&[]).await;
    let source = served.create("shell").await;
    let still = served.may_go_on.lock().await;
    let forking = fork(&served, &source);
    // The wait does not count against the timeout of the call.
    let code = json!({"environment_id": source, "code": "echo went on", "timeout_seconds": 0.5});
    let calling = async {
        sleep(ARRIVAL).await;
        assert_eq!(statuses(&served).await, ["running"]);
        let mut call = Box::pin(served.call("execute", code));
        assert!(timeout(2 * ARRIVAL, &mut call).await.is_err(), "the call did not wait");
        drop(still);
        call.await
    };
    let (forked, called) = tokio::join!(forking, calling);
    assert_eq!((&forked["status"], &called["stdout"]), (&json!("running"), &json!("went on\n")));
}

#[tokio::test(flavor = "multi_thread")]
async fn forks_at_once_count_against_the_maximum_exactly() {
    let served = serve(&["--max-environments", "3"]).await;
    let source = served.create("shell").await;
    write(&served, &source, "before").await;
    let (one, two) = tokio::join!(fork(&served, &source), fork(&served, &source));
    let (text, code) = served.refused("create_environment", json!({"fork_of": source})).await;
    assert_eq!(code, "capacity_reached", "{text}");
    served.call("destroy_environment", json!({"environment_id": source})).await;
    for forked in [&one, &two] {
        assert_eq!(cat(&served, id(forked)).await, "before");
    }
    assert_eq!(served.machines_alive(), 2);
    fork(&served, id(&one)).await;
    served.refused("create_environment", json!({"language": "shell"})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fork_whose_caller_leaves_leaves_nothing_behind() {
    let served = serve(&["--max-environments", "2"]).await;
    let source = served.create("shell").await;
    let still = served.may_go_on.lock().await;
    let params = CallToolRequestParams::new("create_environment")
        .with_arguments(json!({"fork_of": source}).as_object().unwrap().clone());
    let request = ClientRequest::CallToolRequest(Request::new(params));
    let handle = served.client.send_cancellable_request(request, Default::default()).await.unwrap();
    sleep(ARRIVAL).await;
    served.refused("create_environment", json!({"language": "shell"})).await;
    handle.cancel(None).await.unwrap();
    drop(still);
    // Its slot is free again.
    until("the slot is free", async || {
        let created = served.raw("create_environment", json!({"fork_of": source})).await.unwrap();
        created.is_error == Some(false)
    })
    .await;
    assert_eq!(served.machines_alive(), 2);
    assert_eq!(statuses(&served).await, ["running", "running"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn source_can_be_destroyed_during_a_fork() {
    let served = serve(&["--max-environments", "2"]).await;
    let source = served.create("shell").await;
    write(&served, &source, "before").await;
    let still = served.may_go_on.lock().await;
    let destroys = async {
        sleep(ARRIVAL).await;
        let destroy = served.call("destroy_environment", json!({"environment_id": source}));
        let goes_on = async {
            sleep(ARRIVAL).await;
            drop(still);
        };
        tokio::join!(destroy, goes_on);
    };
    let (forked, ()) = tokio::join!(fork(&served, &source), destroys);
    assert_eq!(cat(&served, id(&forked)).await, "before");
    assert_eq!(statuses(&served).await, ["running"]);
    assert_eq!(served.machines_alive(), 1);
    served.create("shell").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_snapshot_changes_nothing() {
    let served = serve(&["--max-environments", "2"]).await;
    let source = served.create("shell").await;
    write(&served, &source, "before").await;
    served.faults.no_snapshot.store(true, SeqCst);
    let (text, code) = served.refused("create_environment", json!({"fork_of": source})).await;
    assert_eq!(code, "save_failed", "{text}");
    assert!(text.contains("failed to fork environment") && text.contains("goes on unchanged"), "{text}");
    served.faults.no_restore.store(true, SeqCst);
    let (text, code) = served.refused("create_environment", json!({"fork_of": source})).await;
    assert_eq!(code, "start_failed", "{text}");
    assert_eq!(cat(&served, &source).await, "before");
    assert_eq!(cat(&served, id(&fork(&served, &source).await)).await, "before");
}

#[tokio::test(flavor = "multi_thread")]
async fn arguments_must_not_contradict_the_source() {
    let served = serve(&[]).await;
    let source = served.create("shell").await;
    let unknown = crate::served::UNKNOWN_ID;
    for (arguments, expected) in [
        (json!({}), "missing argument language, fork_of or saved; one of them is required"),
        (json!({"fork_of": source, "saved": "a"}), "arguments fork_of and saved exclude each other; give one of them"),
        (json!({"language": "shell", "wait": true}), "wait: only allowed with fork_of"),
        (json!({"fork_of": "x"}), "fork_of: invalid id; must look like 123e4567-e89b-42d3-a456-426614174000"),
        (json!({"fork_of": source, "language": "python"}), "language: contradicts the environment"),
        (json!({"fork_of": source, "memory_mb": 256}), "memory_mb: contradicts the environment"),
        (json!({"fork_of": source, "cpus": 2}), "cpus: contradicts the environment"),
        (json!({"saved": " "}), "saved: must not be blank"),
        (json!({"fork_of": unknown}), "not found; list_environments returns the ids"),
        (json!({"saved": "nothing"}), "environments of this server cannot be forked, saved or suspended"),
    ] {
        let (text, _) = served.refused("create_environment", arguments.clone()).await;
        assert!(text.contains(expected), "{arguments}: {text}");
    }
    for (arguments, expected) in [
        (json!({}), "missing argument environment_id or saved; one of them is required"),
        (json!({"environment_id": source, "saved": "a"}), "arguments environment_id and saved exclude each other"),
        (json!({"saved": "a", "save_as": "b"}), "arguments save_as and saved exclude each other"),
        (json!({"environment_id": source, "save_as": "a\nb"}), "save_as: must not contain control characters"),
        (json!({"environment_id": source, "save_as": "a"}), "this server has no folder for saved environments"),
    ] {
        let (text, _) = served.refused("destroy_environment", arguments.clone()).await;
        assert!(text.contains(expected), "{arguments}: {text}");
    }
    let same = json!({"fork_of": source, "language": "shell", "cpus": "1", "memory_mb": 512.0, "name": "same"});
    assert_eq!(served.call("create_environment", same).await["name"], "same");
    assert_eq!(statuses(&served).await, ["running", "running"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn environments_of_other_callers_cannot_be_forked() {
    let served = serve_guarded(&[]).await;
    let source = served.create("shell").await;
    let (bob, _) = connect_as(&served.url, Some(BOB)).await;
    let mut answers = Vec::new();
    for asked in [source.as_str(), crate::served::UNKNOWN_ID] {
        let answer = call(&bob, "create_environment", json!({"fork_of": asked})).await.unwrap();
        assert_eq!(answer.is_error, Some(true));
        answers.push(serde_json::to_string(&answer).unwrap().replace(asked, "ID"));
    }
    assert_eq!(answers[0], answers[1]);
    assert_eq!(served.machines_alive(), 1);
}
