// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Cancelled calls: their processes are killed, with and without a session, and for every kind of cancellation.

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

/// The time that the calls of a closed session get to finish before they are cancelled.
const SESSION_DRAIN: Duration = Duration::from_secs(5);

/// A command that writes its process id and starts a child. Both processes sleep longer than any test runs.
pub(crate) const WAITING: &str = "echo $$ > new; mv new pid; sleep 1000 & sleep 1000";

/// The same command with a flood of output.
const FLOODING: &str = "echo $$ > new; mv new pid; sleep 1000 & while :; do head -c 100000 /dev/zero; done";

/// The arguments of a call that runs until it is cancelled.
pub(crate) fn endless(id: &str, code: &str) -> Value {
    json!({"environment_id": id, "code": code, "timeout_seconds": 200})
}

/// Waits until the command has written its process id, and returns the id. The process group has the same id.
pub(crate) async fn started(served: &Served, id: &str) -> u32 {
    let read = async || served.raw("read_file", json!({"environment_id": id, "path": "pid"})).await.unwrap();
    until("the command has started", async || read().await.is_error == Some(false)).await;
    read().await.content[0].as_text().unwrap().text.trim().parse().unwrap()
}

/// Waits until the process group has no members.
pub(crate) async fn until_gone(leader: u32) {
    until("the process group is gone", async || members(leader).is_empty()).await;
}

/// The running processes of a group, from `/proc`.
fn members(leader: u32) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let stats = processes.filter_map(|path: std::path::PathBuf| std::fs::read_to_string(path.join("stat")).ok());
    let of_group = |stat: &String| {
        // The fields after the name in parentheses: state, parent, group.
        let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().map(str::to_owned).collect();
        fields[2] == leader.to_string() && fields[0] != "Z"
    };
    stats.filter(of_group).collect()
}

async fn check_cancelled<F: Future<Output = ()>>(
    code: &str,
    token: Option<&'static str>,
    cancel: impl Fn(raw::Session, JoinHandle<reqwest::Response>) -> F,
) {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    let session = raw::Session::start(&served.url).await;
    let answer = tokio::spawn(session.begin(7, "execute", &endless(&id, code), token));
    let leader = started(&served, &id).await;
    assert!(Path::new(&format!("/proc/{leader}")).exists());
    cancel(session, answer).await;
    until_gone(leader).await;
    let executed = served.call("execute", json!({"environment_id": id, "code": "echo well"})).await;
    assert_eq!(executed["stdout"], "well\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_notification_kills_the_command_and_its_children() {
    for (code, token) in [(WAITING, None), (WAITING, Some("token")), (FLOODING, Some("token"))] {
        check_cancelled(code, token, |session, answer| async move {
            session.cancel(7).await;
            // There is no result to read.
            drop(answer);
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_a_session_kills_its_commands() {
    check_cancelled(WAITING, None, |session, _answer| async move {
        session.delete().await;
        sleep(SESSION_DRAIN).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_the_answer_kills_the_command_and_its_children() {
    let served = serve(&[]).await;
    for (code, token) in [(WAITING, None), (WAITING, Some("token")), (FLOODING, None), (FLOODING, Some("token"))] {
        let id = served.create("shell").await;
        let url = served.url.clone();
        let arguments = endless(&id, code);
        // Dropping the future, or the answer that the future contains, closes the connection.
        let (close, closed) = tokio::sync::oneshot::channel::<()>();
        let client = tokio::spawn(async move {
            let call = async {
                let answer = raw::stateless_call(&url, "execute", &arguments, token).await;
                std::future::pending::<()>().await;
                drop(answer);
            };
            tokio::select! {
                () = call => {}
                _ = closed => {}
            }
        });
        let leader = started(&served, &id).await;
        close.send(()).unwrap();
        client.await.unwrap();
        until_gone(leader).await;
        served.call("destroy_environment", json!({"environment_id": id})).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn destroying_an_environment_fails_its_running_calls() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    let execute = served.refused("execute", endless(&id, WAITING));
    let destroy = async {
        let leader = started(&served, &id).await;
        served.call("destroy_environment", json!({"environment_id": id})).await;
        leader
    };
    let since = Instant::now();
    let ((text, kind), leader) = tokio::join!(execute, destroy);
    let expected = format!(
        "environment {id} was destroyed during the call, and every process of the call was killed; create a new \
         one with create_environment"
    );
    assert_eq!((text, kind.as_str()), (expected, "environment_destroyed"));
    assert!(since.elapsed() < Duration::from_secs(20));
    until_gone(leader).await;
}
