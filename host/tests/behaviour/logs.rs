// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Logs of environments, as their owners read them over HTTP.

use std::sync::atomic::Ordering::SeqCst;

use serde_json::{Value, json};

use crate::{
    machines::CONSOLE,
    served::{ADA, BOB, Served, UNKNOWN_ID, serve, serve_guarded, serve_trouble, until},
};

/// Requests a log. Returns the status and the text of the response.
async fn ask(served: &Served, id: &str, headers: &[(&str, &str)]) -> (u16, String) {
    let url = served.url.replace("/mcp", &format!("/environments/{id}/log"));
    let client = reqwest::Client::new();
    let request = headers.iter().fold(client.get(url), |request, (name, value)| request.header(*name, *value));
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

async fn log(served: &Served, id: &str) -> Value {
    let (status, text) = ask(served, id, &[]).await;
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

fn events(log: &Value) -> Vec<String> {
    log["events"].as_array().unwrap().iter().map(|event| event["what"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn log_has_events_and_the_cause_of_a_crash() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    let start_events = ["preparing the image", "making the disks", "booting the machine", "running"];
    let first = log(&served, &id).await;
    assert_eq!(events(&first), start_events);
    assert_eq!((&first["status"], &first["environment_id"]), (&json!("running"), &json!(id)));
    assert_eq!(first["console"], json!([CONSOLE]));
    assert!(first["events"][0]["at"].as_str().unwrap() <= first["events"][3]["at"].as_str().unwrap());

    served.faults.crashes.store(true, SeqCst);
    served.refused("write_file", json!({"environment_id": id, "path": "x", "content": ""})).await;
    until("the crash is detected", async || log(&served, &id).await["status"] == "error").await;
    let failed = log(&served, &id).await;
    assert_eq!(events(&failed)[..4], start_events);
    assert!(events(&failed)[4].starts_with("the machine is gone: "), "{failed}");
    assert_eq!(failed["console"], json!([CONSOLE]));

    served.call("destroy_environment", json!({"environment_id": id})).await;
    let (status, text) = ask(&served, &id, &[]).await;
    assert_eq!(status, 410);
    assert!(text.contains("\"environment_destroyed\""), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn log_has_the_cause_of_a_failed_start() {
    let served = serve_trouble(&[]).await;
    let (text, _) = served.refused("create_environment", json!({"language": "node"})).await;
    let id = text.split([' ', ':']).find(|word| word.len() == UNKNOWN_ID.len()).unwrap();
    let failed = log(&served, id).await;
    let reason = "failed while preparing the image: the image is invalid, damaged or not supported";
    assert_eq!(events(&failed), ["preparing the image", reason]);
    assert_eq!((&failed["status"], &failed["console"]), (&json!("destroyed"), &json!([CONSOLE])));
    // The server keeps 32 logs of failed starts.
    for _ in 0..32 {
        served.refused("create_environment", json!({"language": "node"})).await;
    }
    assert_eq!(ask(&served, id, &[]).await.0, 410);
}

#[tokio::test(flavor = "multi_thread")]
async fn log_has_the_stage_of_a_start_in_progress() {
    let served = serve_trouble(&[]).await;
    // This call waits until the environment is destroyed, because the machine never finishes booting.
    let create = served.raw("create_environment", json!({"language": "shell"}));
    let look = async {
        served.until_alive(1).await;
        let listed = served.call("list_environments", json!({})).await;
        let id = listed["environments"][0]["environment_id"].as_str().unwrap();
        let stage = async || events(&log(&served, id).await).pop();
        until("the machine boots", async || stage().await.is_some_and(|what| what == "booting the machine")).await;
        let log = log(&served, id).await;
        assert_eq!((&log["status"], &log["console"]), (&json!("creating"), &json!([])));
        served.call("destroy_environment", json!({"environment_id": id})).await;
    };
    let (created, ()) = tokio::join!(create, look);
    assert!(created.unwrap().is_error.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_owner_can_read_a_log() {
    let served = serve_guarded(&[]).await;
    let id = served.create("shell").await;
    let token = |token: &str| format!("Bearer {token}");
    assert_eq!(ask(&served, &id, &[("authorization", &token(ADA))]).await.0, 200);
    assert_eq!(ask(&served, &id, &[]).await.0, 401);
    let bobs = ask(&served, &id, &[("authorization", &token(BOB))]).await;
    let unknown = ask(&served, UNKNOWN_ID, &[("authorization", &token(BOB))]).await;
    assert_eq!((bobs.0, bobs.1.replace(&id, UNKNOWN_ID)), unknown);
    assert_eq!(unknown.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn log_rejects_foreign_hosts_and_origins() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    for header in [("host", "evil.example"), ("host", "localhost.evil.example"), ("origin", "http://evil.example")] {
        let (status, text) = ask(&served, &id, &[header]).await;
        assert_eq!(status, 403, "{header:?}: {text}");
        assert!(!text.contains(&id));
    }
    assert_eq!(ask(&served, &id, &[("host", "localhost")]).await.0, 200);
    assert_eq!(ask(&served, "..%2f..%2fetc", &[]).await.0, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_a_log_does_not_extend_the_idle_timeout() {
    let served = serve(&["--reaper-interval", "20ms"]).await;
    let made = served.call("create_environment", json!({"language": "shell", "timeout_minutes": 0.01})).await;
    let id = made["environment_id"].as_str().unwrap();
    // The idle timeout of 600 ms expires although the test reads the log all the time.
    until("the environment is gone", async || ask(&served, id, &[]).await.0 != 200).await;
    assert_eq!(ask(&served, id, &[]).await.0, 410);
    assert_eq!(served.machines_alive(), 0);
}
