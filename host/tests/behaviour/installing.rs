// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Installations that share an environment, and installations that are cancelled.
//!
//! The package manager is a script in the home folder, set by the operator.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use waggle::domain::environment::CALLS_MAX;

use crate::{
    cancelling::{started, until_gone},
    raw,
    served::{Served, serve},
};

const COMMAND: [&str; 2] = ["--runtime-shell-install-command", "/bin/sh install.sh"];

/// Fails if another installation runs. Ends when the file `go-on` exists.
const UNTIL_GO_ON: &str = "mkdir lock || exit; echo $$ > new; mv new pid; until [ -e go-on ]; do sleep 0.05; done; \
                           rmdir lock; echo \"$1\" >> installed";

async fn environment(served: &Served, script: &str) -> String {
    let id = served.create("shell").await;
    served.call("write_file", json!({"environment_id": id, "path": "install.sh", "content": script})).await;
    id
}

async fn install(served: &Served, id: &str, packages: &str) -> Value {
    served.call("install_packages", json!({"environment_id": id, "packages": packages})).await
}

async fn shell(served: &Served, id: &str, code: &str) -> Value {
    served.call("execute", json!({"environment_id": id, "code": code})).await["stdout"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn installations_of_an_environment_wait_for_each_other() {
    let served = serve(&COMMAND).await;
    // Fails if another installation runs.
    let id = environment(&served, "mkdir lock && sleep 0.1 && rmdir lock && echo \"$1\" >> installed").await;
    let installed = tokio::join!(
        install(&served, &id, "a"),
        install(&served, &id, "b"),
        install(&served, &id, "c"),
        install(&served, &id, "d")
    );
    for result in [installed.0, installed.1, installed.2, installed.3] {
        assert_eq!(result["exit_code"], 0, "{result}");
    }
    assert_eq!(shell(&served, &id, "sort installed | tr -d '\\n'").await, "abcd");
}

/// Installs packages until the installation runs or waits in the queue.
async fn installing(session: &raw::Session, request: u32, id: &str, packages: &str) -> reqwest::Response {
    let arguments = json!({"environment_id": id, "packages": packages});
    let mut answer = session.begin(request, "install_packages", &arguments, Some(packages)).await;
    let mut reported = String::new();
    while !reported.contains("installing the packages") {
        reported += std::str::from_utf8(&answer.chunk().await.unwrap().unwrap()).unwrap();
    }
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn time_in_the_queue_counts_as_time_of_the_installation() {
    let served = serve(&[&COMMAND[..], &["--install-timeout", "4s"]].concat()).await;
    let script = format!("[ $1 != b ] || exec sleep 1000; {UNTIL_GO_ON}");
    let id = environment(&served, &script).await;
    let second = async {
        started(&served, &id).await;
        let second = served.raw("install_packages", json!({"environment_id": id, "packages": "b"}));
        let end_first = async {
            sleep(Duration::from_secs(1)).await;
            shell(&served, &id, "touch go-on").await;
        };
        tokio::join!(second, end_first).0.unwrap()
    };
    let (first, second) = tokio::join!(install(&served, &id, "a"), second);
    assert_eq!(first["exit_code"], 0);
    assert_eq!(second.meta.unwrap().0["waggle/error"]["code"], "timed_out");
    let text = second.content[0].as_text().unwrap().text.clone();
    assert!(text.contains("timeout of 4 s") && text.contains("waited for another installation"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_installation_finishes_and_the_next_one_waits() {
    let served = serve(&COMMAND).await;
    let id = environment(&served, UNTIL_GO_ON).await;
    let session = raw::Session::start(&served.url).await;
    let first = installing(&session, 7, &id, "a").await;
    started(&served, &id).await;
    // An installation that is cancelled in the queue never runs.
    let second = installing(&session, 8, &id, "b").await;
    session.cancel(7).await;
    session.cancel(8).await;
    drop((first, second));
    let third = async {
        sleep(Duration::from_millis(500)).await;
        shell(&served, &id, "touch go-on").await;
    };
    let (third, ()) = tokio::join!(install(&served, &id, "c"), third);
    assert_eq!(third["exit_code"], 0, "{third}");
    assert_eq!(shell(&served, &id, "tr -d '\\n' < installed").await, "ac");
}

#[tokio::test(flavor = "multi_thread")]
async fn queued_installations_occupy_no_places_and_end_with_the_environment() {
    let served = serve(&COMMAND).await;
    let id = environment(&served, UNTIL_GO_ON).await;
    let session = raw::Session::start(&served.url).await;
    let _running = installing(&session, 7, &id, "a").await;
    started(&served, &id).await;
    let mut queued = Vec::new();
    for request in 100..100 + CALLS_MAX {
        queued.push(installing(&session, u32::try_from(request).unwrap(), &id, &format!("a{request}")).await);
    }
    assert_eq!(shell(&served, &id, "echo well").await, "well\n");
    let since = Instant::now();
    served.call("destroy_environment", json!({"environment_id": id})).await;
    for answer in queued {
        let text = answer.text().await.unwrap();
        assert!(text.contains("environment_not_running") || text.contains("environment_destroyed"), "{text}");
    }
    assert!(since.elapsed().as_secs() < 10, "{:?}", since.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn destroying_an_environment_kills_its_cancelled_installation() {
    let served = serve(&COMMAND).await;
    let id = environment(&served, "echo $$ > new; mv new pid; sleep 1000").await;
    let session = raw::Session::start(&served.url).await;
    let arguments = json!({"environment_id": id, "packages": "a"});
    let answer = tokio::spawn(session.begin(7, "install_packages", &arguments, None));
    let leader = started(&served, &id).await;
    session.cancel(7).await;
    drop(answer);
    assert_eq!(shell(&served, &id, "kill -0 $(cat pid) && echo runs").await, "runs\n");
    let since = Instant::now();
    served.call("destroy_environment", json!({"environment_id": id})).await;
    until_gone(leader).await;
    assert!(since.elapsed().as_secs() < 10, "{:?}", since.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn packages_may_be_a_list_and_system_packages_use_the_command_for_shell() {
    let commands = ["--runtime-shell-install-command", "/usr/bin/echo system"];
    let served = serve(&[&commands[..], &["--runtime-python-install-command", "/usr/bin/echo python"]].concat()).await;
    let id = served.create("python").await;
    for (arguments, expected) in [
        (json!({"packages": ["numpy >= 2", "jq"]}), "python numpy>=2 jq\n"),
        (json!({"packages": "[\"numpy\", \"jq\"]", "system": false}), "python numpy jq\n"),
        (json!({"packages": "g++, \"jq\"", "system": true}), "system g++ jq\n"),
        (json!({"packages": "jq", "system": "True"}), "system jq\n"),
    ] {
        let mut arguments = arguments;
        arguments["environment_id"] = json!(id);
        let installed = served.call("install_packages", arguments).await;
        assert_eq!(installed["stdout"], expected);
    }
    for (packages, expected) in [
        (json!(["-e"]), "invalid package name \"-e\""),
        (json!([["a"]]), "[\"a\"] is not a string"),
        (json!(["a", null, 1]), "null is not a string"),
    ] {
        let (text, _) = served.refused("install_packages", json!({"environment_id": id, "packages": packages})).await;
        assert!(text.contains(expected), "{text}");
    }
}
