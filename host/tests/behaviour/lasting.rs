// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Saved and suspended environments. The machines of these tests have snapshots of their files, without their memory.

use std::{path::Path, sync::atomic::Ordering::SeqCst, time::Duration};

use serde_json::{Value, json};
use tokio::time::sleep;
use waggle::{
    lost::RunningIds,
    saved::{SavedLimits, SavedMachines},
    server::Lasting,
};
use waggle_shared::disk_reserve::DiskReserve;

use crate::served::{ADA, BOB, Served, call, connect_as, serve_lasting, until};

/// An idle timeout of 300 ms, in minutes.
pub(crate) const SHORT: f64 = 0.005;

pub(crate) const LIMITS: SavedLimits =
    SavedLimits { per_owner: 2, bytes: 1 << 30, age: Duration::from_secs(3600), reserve: DiskReserve::from_mib(0) };

/// The policy of a server for environments that are idle, and for its stop.
#[derive(Clone, Copy)]
pub(crate) struct Suspends {
    pub(crate) idle: bool,
    pub(crate) at_stop: bool,
}

pub(crate) const NOTHING: Suspends = Suspends { idle: false, at_stop: false };
pub(crate) const IDLE: Suspends = Suspends { idle: true, at_stop: false };
pub(crate) const AT_STOP: Suspends = Suspends { idle: false, at_stop: true };

/// Opens a data folder, as soon as an earlier server of the test has closed it.
pub(crate) async fn open(data: &Path, limits: SavedLimits, suspends: Suspends) -> Lasting {
    until("the store is free", async || SavedMachines::open(data, limits).await.unwrap().check().is_ok()).await;
    let store = SavedMachines::open(data, limits).await.unwrap();
    let (running, lost) = RunningIds::open(data).unwrap();
    let Suspends { idle: suspends_idle, at_stop: suspends_at_stop } = suspends;
    Lasting { store: Some(store), running: Some(running), lost, suspends_idle, suspends_at_stop }
}

pub(crate) async fn start(data: &Path, flags: &[&str], suspends: Suspends) -> Served {
    serve_lasting(flags, open(data, LIMITS, suspends).await).await
}

/// Stops a server, and drops everything that holds its store.
pub(crate) async fn stop(mut served: Served) {
    served.shut_down().await;
    assert_eq!(served.machines_alive(), 0);
}

pub(crate) async fn statuses(served: &Served) -> Vec<String> {
    let listed = served.call("list_environments", json!({})).await;
    listed["environments"].as_array().unwrap().iter().map(|one| one["status"].as_str().unwrap().to_owned()).collect()
}

pub(crate) async fn saved_names(served: &Served) -> Vec<Value> {
    let listed = served.call("list_environments", json!({})).await;
    let saved = listed.get("saved").and_then(Value::as_array).cloned().unwrap_or_default();
    saved.iter().map(|one| one["name"].clone()).collect()
}

pub(crate) async fn run(served: &Served, id: &str, code: &str) -> Value {
    served.call("execute", json!({"environment_id": id, "code": code})).await
}

pub(crate) async fn save(served: &Served, id: &str, name: &str) -> Value {
    served.call("destroy_environment", json!({"environment_id": id, "save_as": name})).await
}

/// Creates an environment that becomes idle at once, and waits until it is suspended.
pub(crate) async fn create_suspended(served: &Served, content: &str) -> String {
    let arguments = json!({"language": "shell", "timeout_minutes": SHORT});
    let id = served.call("create_environment", arguments).await["environment_id"].as_str().unwrap().to_owned();
    run(served, &id, &format!("echo {content} >kept")).await;
    until("the environment is suspended", async || statuses(served).await == ["suspended"]).await;
    served.until_alive(0).await;
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn saved_environment_is_destroyed_and_its_copies_have_its_files() {
    let data = tempfile::tempdir().unwrap();
    let served = start(data.path(), &["--max-environments", "2"], NOTHING).await;
    let arguments = json!({"language": "shell", "name": "my work", "environment": {"COLOUR": "red"}});
    let id = served.call("create_environment", arguments).await["environment_id"].as_str().unwrap().to_owned();
    run(&served, &id, "echo first >kept").await;
    let saved = save(&served, &id, "base").await;
    assert_eq!(saved["message"], format!("Environment {id} has been saved as \"base\" and destroyed"));
    assert_eq!((&saved["status"], &saved["saved"]), (&json!("destroyed"), &json!("base")));
    assert!(saved["size_bytes"].as_u64().unwrap() > 0, "{saved}");
    assert_eq!((served.machines_alive(), statuses(&served).await.len()), (0, 0));
    let (_, code) = served.refused("execute", json!({"environment_id": id, "code": "true"})).await;
    assert_eq!(code, "environment_destroyed");
    let listed = served.call("list_environments", json!({})).await;
    let entry = &listed["saved"][0];
    assert_eq!((&entry["name"], &entry["runtime"]), (&json!("base"), &json!("shell")));
    assert!(entry["saved_at"].as_str().unwrap().starts_with("20") && entry["size_bytes"].is_u64(), "{entry}");

    stop(served).await;
    let served = start(data.path(), &["--max-environments", "2"], NOTHING).await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        let created = served.call("create_environment", json!({"saved": "base"})).await;
        assert_eq!((&created["memory"], &created["name"]), (&json!(false), &json!("my work")), "{created}");
        ids.push(created["environment_id"].as_str().unwrap().to_owned());
    }
    assert_eq!(run(&served, &ids[0], "cat kept; echo $COLOUR; echo second >kept").await["stdout"], "first\nred\n");
    // Saving again under the name replaces it at once; the other copy is not affected.
    save(&served, &ids[0], "base").await;
    assert_eq!(run(&served, &ids[1], "cat kept").await["stdout"], "first\n");
    assert_eq!(saved_names(&served).await, ["base"]);
    let created = served.call("create_environment", json!({"saved": "base"})).await;
    let id = created["environment_id"].as_str().unwrap();
    assert_eq!(run(&served, id, "cat kept").await["stdout"], "second\n");

    let removed = served.call("destroy_environment", json!({"saved": "base"})).await;
    assert_eq!(removed["message"], "Saved environment \"base\" has been deleted");
    for tool in ["destroy_environment", "create_environment"] {
        let (text, code) = served.refused(tool, json!({"saved": "base"})).await;
        assert_eq!(code, "saved_not_found", "{text}");
    }
    assert_eq!(saved_names(&served).await, [""; 0]);
    assert_eq!(run(&served, id, "cat kept").await["stdout"], "second\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn environment_that_cannot_be_saved_is_not_destroyed() {
    let data = tempfile::tempdir().unwrap();
    let served = start(data.path(), &[], NOTHING).await;
    let id = served.create("shell").await;
    run(&served, &id, "echo kept >kept").await;
    let save_as = |name: &str| json!({"environment_id": id, "save_as": name});
    served.faults.no_snapshot.store(true, SeqCst);
    let (text, code) = served.refused("destroy_environment", save_as("a")).await;
    assert_eq!(code, "save_failed", "{text}");
    assert!(text.contains("goes on unchanged"), "{text}");
    assert_eq!(run(&served, &id, "cat kept").await.get("memory"), None);
    // The machine has ended when its snapshot cannot be written, so it starts again from the snapshot.
    served.faults.disk_full.store(true, SeqCst);
    let (text, code) = served.refused("destroy_environment", save_as("a")).await;
    assert_eq!(code, "host_disk_low", "{text}");
    assert!(text.contains("which was not destroyed, but starts again from the moment of the save"), "{text}");
    let back = run(&served, &id, "cat kept").await;
    assert_eq!((&back["stdout"], &back["memory"]), (&json!("kept\n"), &json!(false)), "{back}");

    save(&served, &id, "a").await;
    for (name, limit) in [("b", None), ("c", Some("saved_limit_reached"))] {
        let id = served.create("shell").await;
        let arguments = json!({"environment_id": id, "save_as": name});
        match limit {
            None => drop(served.call("destroy_environment", arguments).await),
            Some(limit) => {
                let (text, code) = served.refused("destroy_environment", arguments).await;
                assert_eq!(code, limit, "{text}");
                assert!(text.contains("which was not destroyed"), "{text}");
                run(&served, &id, "true").await;
            }
        }
    }
    assert_eq!(saved_names(&served).await, ["a", "b"]);
    assert_eq!(statuses(&served).await, ["running"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_environment_is_suspended_and_comes_back_for_its_calls() {
    let data = tempfile::tempdir().unwrap();
    let served = start(data.path(), &["--reaper-interval", "20ms", "--max-environments", "1"], IDLE).await;
    let id = create_suspended(&served, "kept").await;
    // It keeps its slot.
    let (text, code) = served.refused("create_environment", json!({"language": "shell"})).await;
    assert_eq!(code, "capacity_reached", "{text}");
    let started = served.starts.load(SeqCst);
    let calls = (0..5).map(|_| run(&served, &id, "cat kept; sleep 0.2"));
    let results = futures_util::future::join_all(calls).await;
    assert_eq!(served.starts.load(SeqCst), started + 1);
    assert!(results.iter().all(|result| result["stdout"] == "kept\n"), "{results:?}");
    let told: Vec<_> = results.iter().filter(|result| result.get("memory").is_some()).collect();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0]["memory"], false);
    assert!(told[0]["resumed"].as_str().unwrap().contains("the programs that ran have ended"), "{}", told[0]);
    let listed = served.call("list_environments", json!({})).await;
    assert_eq!(listed["environments"][0]["memory"], false);

    until("the environment is suspended again", async || statuses(&served).await == ["suspended"]).await;
    let written = served.call("write_file", json!({"environment_id": id, "path": "x", "content": "y"})).await;
    assert_eq!(written["memory"], false);
    until("the environment is suspended again", async || statuses(&served).await == ["suspended"]).await;
    let log: Value = served.get(&format!("/environments/{id}/log")).await.1;
    let events = log["events"].to_string();
    assert!(
        events.contains("reached its idle timeout") && events.contains("came back with its files only"),
        "{events}"
    );
    // Reading the log is not a call.
    assert_eq!((statuses(&served).await, served.machines_alive()), (vec!["suspended".to_owned()], 0));
    served.call("destroy_environment", json!({"environment_id": id})).await;
    served.create("shell").await;
    stop(served).await;
    let next = start(data.path(), &[], NOTHING).await;
    assert_eq!(statuses(&next).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn environment_that_cannot_come_back_or_be_suspended_loses_nothing() {
    let data = tempfile::tempdir().unwrap();
    let served = start(data.path(), &["--reaper-interval", "20ms"], IDLE).await;
    served.faults.no_snapshot.store(true, SeqCst);
    let id = create_suspended(&served, "kept").await;
    assert!(!served.faults.no_snapshot.load(SeqCst), "the first attempt should have failed");
    served.faults.no_restore.store(true, SeqCst);
    let (text, code) = served.refused("execute", json!({"environment_id": id, "code": "true"})).await;
    assert_eq!(code, "resume_failed", "{text}");
    assert!(text.contains("its saved state is kept"), "{text}");
    assert_eq!((statuses(&served).await, served.machines_alive()), (vec!["suspended".to_owned()], 0));
    assert_eq!(run(&served, &id, "cat kept").await["stdout"], "kept\n");
    until("the environment is suspended again", async || statuses(&served).await == ["suspended"]).await;

    // A suspended environment can be forked and saved without coming back.
    let started = served.starts.load(SeqCst);
    let forked = served.call("create_environment", json!({"fork_of": id, "timeout_minutes": 5})).await;
    assert_eq!(served.starts.load(SeqCst), started + 1);
    let forked = forked["environment_id"].as_str().unwrap();
    assert_eq!(run(&served, forked, "cat kept").await["stdout"], "kept\n");
    save(&served, &id, "from a suspended one").await;
    assert_eq!(served.starts.load(SeqCst), started + 1);
    assert_eq!(statuses(&served).await, ["running"]);
    let created = served.call("create_environment", json!({"saved": "from a suspended one"})).await;
    let created = created["environment_id"].as_str().unwrap();
    assert_eq!(run(&served, created, "cat kept").await["stdout"], "kept\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_server_leaves_its_environments_to_the_next_one() {
    let data = tempfile::tempdir().unwrap();
    let lasting = open(data.path(), LIMITS, AT_STOP).await;
    let served = crate::served::serve_guarded_lasting(&["--max-environments", "4"], lasting).await;
    let ids = [served.create("shell").await, served.create("python").await];
    for id in &ids {
        run(&served, id, "print('x')").await;
        let arguments = json!({"environment_id": id, "path": "kept", "content": id});
        served.call("write_file", arguments).await;
    }
    let before = served.call("list_environments", json!({})).await;
    // A call that does not end is cut off.
    let cut_off = json!({"environment_id": ids[0], "code": "sleep 1000", "timeout_seconds": 300});
    let (client, _) = connect_as(&served.url, Some(ADA)).await;
    let cut_off = tokio::spawn(async move { call(&client, "execute", cut_off).await });
    sleep(Duration::from_millis(500)).await;
    stop(served).await;
    assert!(format!("{:?}", cut_off.await.unwrap()).contains("shutting_down"));

    let lasting = open(data.path(), LIMITS, AT_STOP).await;
    assert_eq!(lasting.lost, []);
    let next = crate::served::serve_guarded_lasting(&["--max-environments", "4"], lasting).await;
    assert_eq!(statuses(&next).await, ["suspended", "suspended"]);
    let after = next.call("list_environments", json!({})).await;
    for (index, id) in ids.iter().enumerate() {
        let (old, new) = (&before["environments"][index], &after["environments"][index]);
        for key in ["environment_id", "name", "runtime", "created_at", "memory_mb"] {
            assert_eq!(old[key], new[key]);
        }
        assert_eq!(new["environment_id"], json!(id));
    }
    let (bob, _) = connect_as(&next.url, Some(BOB)).await;
    let answer = call(&bob, "read_file", json!({"environment_id": ids[0], "path": "kept"})).await.unwrap();
    assert!(format!("{answer:?}").contains("environment_not_found"));
    // Both count against the maximum of two for each of two callers.
    let (text, code) = next.refused("create_environment", json!({"language": "shell"})).await;
    assert_eq!(code, "caller_capacity_reached", "{text}");
    let result = next.raw("read_file", json!({"environment_id": ids[0], "path": "kept"})).await.unwrap();
    assert_eq!(result.content[0].as_text().unwrap().text, ids[0]);
    assert_eq!(statuses(&next).await, ["running", "suspended"]);
    // A third server gets what the second brought back, and what it did not.
    stop(next).await;
    let lasting = open(data.path(), LIMITS, NOTHING).await;
    let last = crate::served::serve_guarded_lasting(&[], lasting).await;
    for id in &ids {
        let result = last.raw("read_file", json!({"environment_id": id, "path": "kept"})).await.unwrap();
        assert_eq!(result.content[0].as_text().unwrap().text, *id);
    }
    stop(last).await;
    // This one destroyed its environments when it was stopped.
    let lasting = open(data.path(), LIMITS, NOTHING).await;
    let empty = crate::served::serve_guarded_lasting(&[], lasting).await;
    assert_eq!(statuses(&empty).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn environment_that_a_stop_could_not_suspend_is_reported_as_lost() {
    let data = tempfile::tempdir().unwrap();
    let served = start(data.path(), &[], AT_STOP).await;
    let id = served.create("shell").await;
    served.faults.no_snapshot.store(true, SeqCst);
    stop(served).await;
    let next = start(data.path(), &[], AT_STOP).await;
    let (text, code) = next.refused("execute", json!({"environment_id": id, "code": "true"})).await;
    assert_eq!(code, "environment_destroyed", "{text}");
    assert!(text.contains("was lost when the server stopped, because it could not be suspended"), "{text}");
    next.call("destroy_environment", json!({"environment_id": id})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn suspended_environment_is_destroyed_when_its_state_is_too_old() {
    let data = tempfile::tempdir().unwrap();
    let limits = SavedLimits { age: Duration::from_secs(2), ..LIMITS };
    let lasting = open(data.path(), limits, IDLE).await;
    let served = serve_lasting(&["--reaper-interval", "20ms"], lasting).await;
    let id = create_suspended(&served, "kept").await;
    until("the environment is destroyed", async || statuses(&served).await.is_empty()).await;
    let (text, code) = served.refused("execute", json!({"environment_id": id, "code": "true"})).await;
    assert_eq!(code, "environment_destroyed");
    assert!(text.contains("because it was suspended for too long"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn saved_environments_of_other_callers_are_unknown() {
    let data = tempfile::tempdir().unwrap();
    let lasting = open(data.path(), LIMITS, NOTHING).await;
    let served = crate::served::serve_guarded_lasting(&[], lasting).await;
    let id = served.create("shell").await;
    save(&served, &id, "ada's").await;
    let (bob, _) = connect_as(&served.url, Some(BOB)).await;
    for tool in ["create_environment", "destroy_environment"] {
        let mut answers = Vec::new();
        for name in ["ada's", "none's"] {
            let answer = call(&bob, tool, json!({"saved": name})).await.unwrap();
            assert_eq!(answer.is_error, Some(true));
            answers.push(serde_json::to_string(&answer).unwrap().replace(name, "NAME"));
        }
        assert_eq!(answers[0], answers[1]);
    }
    let listed = call(&bob, "list_environments", json!({})).await.unwrap().structured_content.unwrap();
    assert_eq!(listed.get("saved"), None);
    assert_eq!(saved_names(&served).await, ["ada's"]);
}
