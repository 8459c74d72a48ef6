// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Calls beyond the maximum of an environment wait for a place, until they are cancelled or their environment ends.

use std::{path::Path, time::Duration};

use serde_json::{Value, json};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use crate::{
    raw,
    served::{Served, serve, until},
};

/// The maximum of concurrent calls in one environment.
const PLACES: usize = 32;

/// Time for a request to arrive at the queue, or for a cancellation to take effect.
const ARRIVAL: Duration = Duration::from_millis(300);

/// A call that creates the file `name`, and ends when the file is removed.
fn holding(id: &str, folder: &Path, name: &str) -> Value {
    let file = folder.join(name).display().to_string();
    let code = format!("touch '{file}'; while [ -e '{file}' ]; do sleep 0.05; done");
    json!({"environment_id": id, "code": code, "timeout_seconds": 200})
}

/// Begins a call, and waits until its command runs.
async fn hold(served: &Served, id: &str, folder: &Path, name: &str) -> JoinHandle<reqwest::Response> {
    let (url, arguments) = (served.url.clone(), holding(id, folder, name));
    let call = tokio::spawn(async move { raw::stateless_call(&url, "execute", &arguments, None).await });
    until("the command runs", async || folder.join(name).exists()).await;
    call
}

/// Begins as many calls as there are places, named by numbers.
async fn hold_all(served: &Served, id: &str, folder: &Path) -> Vec<JoinHandle<reqwest::Response>> {
    let mut held = Vec::new();
    for number in 0..PLACES {
        held.push(hold(served, id, folder, &number.to_string()).await);
    }
    held
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_call_gets_the_place_of_one_that_ends() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    let folder = tempfile::tempdir().unwrap();
    let _held = hold_all(&served, &id, folder.path()).await;
    // The first call that waits is cancelled, so it never runs.
    let session = raw::Session::start(&served.url).await;
    let cancelled = tokio::spawn(session.begin(7, "execute", &holding(&id, folder.path(), "cancelled"), None));
    sleep(ARRIVAL).await;
    let turn = served.call("execute", json!({"environment_id": id, "code": "echo turn", "timeout_seconds": 100}));
    let frees_a_place = async {
        sleep(ARRIVAL).await;
        session.cancel(7).await;
        sleep(ARRIVAL).await;
        std::fs::remove_file(folder.path().join("0")).unwrap();
    };
    let (executed, ()) = tokio::join!(turn, frees_a_place);
    assert_eq!(executed["stdout"], "turn\n");
    assert!(!folder.path().join("cancelled").exists());
    drop(cancelled);
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_call_ends_with_its_environment() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    let folder = tempfile::tempdir().unwrap();
    let _held = hold_all(&served, &id, folder.path()).await;
    let (text, kind) =
        served.refused("execute", json!({"environment_id": id, "code": "true", "timeout_seconds": 0.5})).await;
    assert_eq!(kind, "environment_busy", "{text}");
    let since = Instant::now();
    let waits = served.refused("execute", json!({"environment_id": id, "code": "true", "timeout_seconds": 100}));
    let reads = served.refused("read_file", json!({"environment_id": id, "path": "a"}));
    let destroy = async {
        sleep(ARRIVAL).await;
        served.call("destroy_environment", json!({"environment_id": id})).await
    };
    let ((_, executing), (_, reading), _) = tokio::join!(waits, reads, destroy);
    // The environment is being destroyed, or was.
    let ended = ["environment_not_running", "environment_destroyed"];
    assert!(ended.contains(&executing.as_str()) && ended.contains(&reading.as_str()), "{executing}, {reading}");
    assert!(since.elapsed() < Duration::from_secs(20));
}
