// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The ends of saved and suspended environments, and faults of their store.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering::SeqCst},
    time::{Duration, SystemTime},
};

use serde_json::json;
use waggle::{
    domain::{
        environment::{EnvironmentName, NewEnvironment},
        environment_id::EnvironmentId,
        machine_size::MachineSize,
        principal::Principal,
        runtime::{ByRuntime, Runtime},
        saved::SavedKey,
        shared_limit::SharedLimit,
        variables::Variables,
    },
    error_code::ErrorCode,
    saved::{Expected, SavedAbout, SavedMachines},
    server::Lasting,
    service::{callers::Callers, environments::Environments, saving::Saving},
};
use waggle_images::reference::PullRights;

use crate::{
    lasting::{
        AT_STOP, IDLE, LIMITS, NOTHING, SHORT, Suspends, create_suspended, open, run, save, saved_names, start,
        statuses, stop,
    },
    machines::InProcess,
    served::{serve_guarded_lasting, serve_lasting, until},
};

/// Returns the folder of the only entry in the store.
fn entry(data: &Path) -> PathBuf {
    let entries = fs::read_dir(data.join("saved")).unwrap().map(|entry| entry.unwrap().path());
    let entries: Vec<_> = entries.filter(|path| path.join("about").is_file()).collect();
    assert_eq!(entries.len(), 1, "{entries:?}");
    entries[0].clone()
}

/// Parameters of an environment of the shell.
fn about(id: EnvironmentId) -> SavedAbout {
    SavedAbout {
        id,
        name: EnvironmentName::of(Runtime::Shell, id),
        runtime: Runtime::Shell,
        image: "oci:/good".parse().unwrap(),
        pull_rights: PullRights::Operator,
        created_at: SystemTime::now(),
        idle_timeout: Duration::from_secs(60),
        network: None,
        cpus: 1,
        memory_mib: 512,
        disk_mib: 4096,
        variables: Variables::default(),
        killed_installations: ByRuntime::default(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn environment_that_a_stop_suspended_is_destroyed_after_its_idle_timeout() {
    let data = tempfile::tempdir().unwrap();
    let served = start(data.path(), &["--max-environments", "1"], AT_STOP).await;
    let arguments = json!({"language": "shell", "timeout_minutes": SHORT});
    let id = served.call("create_environment", arguments).await["environment_id"].as_str().unwrap().to_owned();
    stop(served).await;
    let flags = ["--max-environments", "1", "--reaper-interval", "20ms"];
    let next = start(data.path(), &flags, AT_STOP).await;
    until("the environment is destroyed", async || statuses(&next).await.is_empty()).await;
    let (text, code) = next.refused("execute", json!({"environment_id": id, "code": "true"})).await;
    assert_eq!(code, "environment_destroyed");
    assert!(text.contains("because it reached its idle timeout"), "{text}");
    let id = next.create("shell").await;
    next.call("destroy_environment", json!({"environment_id": id})).await;
    stop(next).await;
    assert_eq!(statuses(&start(data.path(), &[], NOTHING).await).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn suspended_environments_of_owners_without_access_take_no_slots() {
    let data = tempfile::tempdir().unwrap();
    let served = start(data.path(), &[], AT_STOP).await;
    let id = served.create("shell").await;
    stop(served).await;
    let guarded = serve_guarded_lasting(&["--max-environments", "1"], open(data.path(), LIMITS, AT_STOP).await).await;
    assert_eq!(statuses(&guarded).await, [""; 0]);
    guarded.create("shell").await;
    stop(guarded).await;
    // Now the environment of a name with a token has no owner who could use it.
    let last = start(data.path(), &["--max-environments", "2"], NOTHING).await;
    assert_eq!(statuses(&last).await, ["suspended"]);
    run(&last, &id, "true").await;
    last.create("shell").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn server_on_standard_input_removes_what_an_earlier_client_left_suspended() {
    let data = tempfile::tempdir().unwrap();
    let id = EnvironmentId::random();
    let lasting = open(data.path(), LIMITS, NOTHING).await;
    let store = lasting.store.clone().unwrap();
    let draft =
        store.draft(&Principal::local(), SavedKey::Suspended(id), Expected { bytes: 0, callers: 1 }).await.unwrap();
    draft.publish(about(id)).await.unwrap();
    let _served = serve_lasting(&["--stdio"], lasting).await;
    until("the entry is removed", async || store.suspended().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_saved_environment_is_reported_once_and_then_no_longer_listed() {
    let data = tempfile::tempdir().unwrap();
    let served = start(data.path(), &[], NOTHING).await;
    let id = served.create("shell").await;
    save(&served, &id, "base").await;
    let damaged = entry(data.path());
    fs::remove_file(damaged.join("machine/disk.tar")).unwrap();
    let (text, code) = served.refused("create_environment", json!({"saved": "base"})).await;
    assert_eq!(code, "saved_damaged");
    assert!(text.contains("the saved files are damaged; it can no longer be used or listed"), "{text}");
    assert_eq!(saved_names(&served).await, [""; 0]);
    assert!(damaged.join("about.damaged").exists());
    let (_, code) = served.refused("create_environment", json!({"saved": "base"})).await;
    assert_eq!(code, "saved_not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_suspended_environment_says_so_and_can_be_destroyed() {
    let data = tempfile::tempdir().unwrap();
    let served = start(data.path(), &["--reaper-interval", "20ms"], IDLE).await;
    let id = create_suspended(&served, "kept").await;
    fs::remove_file(entry(data.path()).join("machine/disk.tar")).unwrap();
    let (text, code) = served.refused("execute", json!({"environment_id": id, "code": "true"})).await;
    assert_eq!(code, "saved_damaged");
    assert!(text.contains("the saved files are damaged; it stays suspended, but can only be destroyed"), "{text}");
    served.call("destroy_environment", json!({"environment_id": id})).await;
    assert_eq!(statuses(&served).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn environment_whose_saved_state_cannot_be_removed_stays_suspended() {
    let data = tempfile::tempdir().unwrap();
    let served = start(data.path(), &["--reaper-interval", "20ms"], IDLE).await;
    let id = create_suspended(&served, "kept").await;
    // A file cannot replace a folder.
    let obstacle = entry(data.path()).join("about.removed");
    fs::create_dir(&obstacle).unwrap();
    let (text, code) = served.refused("destroy_environment", json!({"environment_id": id})).await;
    assert_eq!(code, "save_failed");
    assert!(text.contains(&format!("failed to destroy environment {id}, which stays suspended")), "{text}");
    let started = served.starts.load(SeqCst);
    let (text, code) = served.refused("execute", json!({"environment_id": id, "code": "true"})).await;
    assert_eq!(code, "resume_failed");
    assert!(text.contains("failed to remove the saved state"), "{text}");
    assert_eq!(served.starts.load(SeqCst), started + 1);
    assert_eq!((statuses(&served).await, served.machines_alive()), (vec!["suspended".to_owned()], 0));
    fs::remove_dir(&obstacle).unwrap();
    assert_eq!(run(&served, &id, "cat kept").await["stdout"], "kept\n");
    served.call("destroy_environment", json!({"environment_id": id})).await;
    assert_eq!(statuses(&served).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn environment_whose_saved_state_is_gone_has_been_destroyed() {
    let data = tempfile::tempdir().unwrap();
    let served = start(data.path(), &["--reaper-interval", "20ms"], Suspends { idle: true, at_stop: true }).await;
    let id = create_suspended(&served, "kept").await;
    stop(served).await;
    let lasting = open(data.path(), LIMITS, NOTHING).await;
    let store = lasting.store.clone().unwrap();
    let next = serve_lasting(&[], lasting).await;
    assert_eq!(statuses(&next).await, ["suspended"]);
    let key = SavedKey::Suspended(id.parse().unwrap());
    assert!(store.remove(&Principal::anonymous(), &key).await.unwrap());
    for (tool, arguments) in
        [("execute", json!({"environment_id": id, "code": "true"})), ("create_environment", json!({"fork_of": id}))]
    {
        let (text, code) = next.refused(tool, arguments).await;
        assert_eq!(code, "environment_destroyed");
        assert!(text.contains("because it was suspended for too long"), "{text}");
    }
    assert_eq!(statuses(&next).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn environment_that_a_stop_leaves_suspended_is_not_reported_as_destroyed() {
    let data = tempfile::tempdir().unwrap();
    let store = open(data.path(), LIMITS, AT_STOP).await.store;
    let (limit, policy) = (SharedLimit { all: 1, per_caller: None }, "none".parse().unwrap());
    let machines = Arc::new(InProcess::default());
    let environments = Environments::new(machines, Duration::from_secs(30), policy, limit, Callers::default());
    let environments = environments.with_saving(Saving { store, ..Saving::default() }, None, Vec::new());
    let owner = Principal::anonymous();
    let new = NewEnvironment {
        owner: owner.clone(),
        name: None,
        runtime: Runtime::Shell,
        image: "oci:/good".parse().unwrap(),
        pull_rights: PullRights::Operator,
        size: MachineSize { cpus: 1, memory_mib: 512, disk_mib: 4096 },
        variables: Variables::default(),
        idle_timeout: Duration::from_secs(60),
        network: None,
    };
    let id = environments.create(new, |_| ()).await.unwrap().environment.id;
    let limit = Duration::from_secs(10);
    environments.suspend_all(limit, limit, limit).await;
    assert_eq!(environments.destroy(&owner, id).await.unwrap_err().code(), ErrorCode::ShuttingDown);
    assert_eq!(environments.log(&owner, id).unwrap_err().code(), ErrorCode::ShuttingDown);
    drop(environments);
    assert_eq!(statuses(&start(data.path(), &[], NOTHING).await).await, ["suspended"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn list_says_that_another_server_holds_the_saved_environments() {
    let data = tempfile::tempdir().unwrap();
    let first = start(data.path(), &[], NOTHING).await;
    let id = first.create("shell").await;
    save(&first, &id, "base").await;
    let store = Some(SavedMachines::open(data.path(), LIMITS).await.unwrap());
    let second = serve_lasting(&[], Lasting { store, ..Lasting::default() }).await;
    let listed = second.call("list_environments", json!({})).await;
    let why = listed["saved_unavailable"].as_str().unwrap();
    assert!(why.contains("another server holds those of the same data folder"), "{why}");
    let listed = first.call("list_environments", json!({})).await;
    assert_eq!((listed.get("saved_unavailable"), &listed["saved"][0]["name"]), (None, &json!("base")));
}
