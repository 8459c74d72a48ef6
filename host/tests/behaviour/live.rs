// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Progress reports with output, and clients that do not read them.

use std::time::Duration;

use rmcp::model::CallToolRequestParams;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::{
    raw,
    served::{Served, TIMEOUT, serve, until},
};

fn reports(served: &Served) -> Vec<String> {
    served.reports.lock().unwrap().iter().map(|(_, _, message)| message.clone()).collect()
}

async fn until_reported(served: &Served, text: &str) {
    until(&format!("{text:?} is reported"), async || reports(served).concat().contains(text)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn output_is_reported_while_the_command_runs() {
    let served = serve(&["--runtime-shell-install-command", "/bin/sh install.sh"]).await;
    let id = served.create("shell").await;
    // The command continues once the test has seen the first output.
    let code = "echo step-1; while [ ! -e seen ]; do sleep 0.01; done; echo step-2 >&2";
    let execute = served.call("execute", json!({"environment_id": id, "code": code}));
    let go_on = async {
        until_reported(&served, "step-1\n").await;
        served.call("write_file", json!({"environment_id": id, "path": "seen", "content": ""})).await;
    };
    let (executed, ()) = tokio::join!(execute, go_on);
    assert_eq!((&executed["stdout"], &executed["stderr"]), (&json!("step-1\n"), &json!("step-2\n")));

    let install = json!({"environment_id": id, "path": "install.sh", "content": "echo \"unpacking $1\"; sleep 0.3"});
    served.call("write_file", install).await;
    served.call("install_packages", json!({"environment_id": id, "packages": "jq"})).await;
    assert!(reports(&served).contains(&"unpacking jq\n".to_owned()), "{:?}", reports(&served));
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_reports_grow_and_are_bounded() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    let session = raw::Session::start(&served.url).await;
    let code = "for i in 1 2 3; do head -c 3000000 /dev/zero | tr '\\0' x; printf '€€€'; sleep 0.3; done";
    let answer = session.call(7, "execute", &json!({"environment_id": id, "code": code}), Some("watch")).await;
    let stream = timeout(TIMEOUT, answer.text()).await.unwrap().unwrap();
    let messages = stream.lines().filter_map(|line| line.strip_prefix("data: {")).map(|rest| format!("{{{rest}"));
    let messages: Vec<Value> = messages.map(|text| serde_json::from_str(&text).unwrap()).collect();
    let (result, reports) = messages.split_last().unwrap();
    assert_eq!(result["result"]["structuredContent"]["exit_code"], 0);
    let numbers: Vec<_> = reports.iter().map(|report| report["params"]["progress"].as_f64().unwrap()).collect();
    assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "{numbers:?}");
    assert!((3..20).contains(&numbers.len()), "{numbers:?}");
    let texts: Vec<_> = reports.iter().map(|report| report["params"]["message"].as_str().unwrap()).collect();
    let longest = texts.iter().map(|text| text.len()).max().unwrap();
    assert!((1000..4200).contains(&longest), "{longest}");
    let is_cut = |text: &&str| text.contains(" bytes left out here]\n") && text.ends_with("x€€€");
    assert!(texts.iter().any(is_cut), "{texts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unread_reports_block_neither_the_command_nor_the_session() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    let session = raw::Session::start(&served.url).await;
    // The reports have their maximum size, and the client's buffer has the minimum size.
    let code = "for i in $(seq 40); do head -c 100000 /dev/zero | tr '\\0' x; sleep 0.05; done; touch ended; sleep 100";
    let unread = session.call_unread(7, "execute", &json!({"environment_id": id, "code": code}), "watch").await;
    let files = async || served.call("list_files", json!({"environment_id": id})).await;
    until("the flood has ended", async || files().await.to_string().contains("ended")).await;
    let arguments = json!({"environment_id": id, "code": "echo well"});
    let other = session.call(8, "execute", &arguments, None);
    let text = timeout(TIMEOUT, async { other.await.text().await.unwrap() }).await.unwrap();
    assert!(text.contains("well"), "{text}");
    drop(unread);
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_call_reports_every_15_s() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    served.reports.lock().unwrap().clear();
    let since = std::time::Instant::now();
    let times = std::sync::Mutex::new(vec![since]);
    let watch = async {
        let mut seen = 0;
        loop {
            let count = reports(&served).len();
            if count > seen {
                seen = count;
                times.lock().unwrap().push(std::time::Instant::now());
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    // The call runs longer than two of the promised report intervals.
    let arguments = json!({"environment_id": id, "code": "sleep 31", "timeout_seconds": 60});
    let arguments = serde_json::from_value(arguments).unwrap();
    let call = served.client.call_tool(CallToolRequestParams::new("execute").with_arguments(arguments));
    let result = tokio::select! {
        result = call => result.unwrap(),
        () = watch => unreachable!("watch never ends"),
    };
    assert_eq!(result.is_error, Some(false));
    let mut times = times.into_inner().unwrap();
    times.push(std::time::Instant::now());
    let longest = times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    assert!(longest < Duration::from_secs(15), "{longest:?}");
}
