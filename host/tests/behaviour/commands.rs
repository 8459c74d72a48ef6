// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The start of commands, and their results.

use serde_json::{Value, json};

use crate::{
    raw,
    served::{Served, serve},
};

/// Number of bytes that a result keeps at the start of a long output, and as many at the end.
const END_BYTES: usize = 32 * 1024;

async fn run(served: &Served, code: &str) -> Value {
    let id = served.create("shell").await;
    served.call("execute", json!({"environment_id": id, "code": code})).await
}

#[tokio::test(flavor = "multi_thread")]
async fn command_gets_its_stdin_variables_and_folder() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    served.call("write_file", json!({"environment_id": id, "path": "work/here", "content": ""})).await;
    let code = "ls; wc -c; printf '%s|%s' \"$GREETING\" \"$USER\"";
    let arguments = json!({
        "environment_id": id,
        "code": code,
        "stdin": "x".repeat(3_000_000),
        "working_directory": "work",
        "environment": {"GREETING": "grüß\n\"dich\"", "USER": "somebody"},
    });
    let executed = served.call("execute", arguments).await;
    assert_eq!(executed["stdout"], "here\n3000000\ngrüß\n\"dich\"|somebody");
    let executed = served.call("execute", json!({"environment_id": id, "code": "cat; echo \"[$GREETING]\""})).await;
    assert_eq!(executed["stdout"], "[]\n", "the variables of a call must not apply to the next call");
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_working_directory_is_named() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    let arguments = json!({"environment_id": id, "code": "true", "working_directory": "nowhere"});
    let (text, kind) = served.refused("execute", arguments).await;
    assert_eq!(kind, "not_found");
    assert!(text.contains("working directory /home/sandbox/nowhere"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn signal_is_reported_by_number() {
    let served = serve(&[]).await;
    let executed = run(&served, "echo out; kill -SEGV $$").await;
    assert_eq!(
        (&executed["exit_code"], &executed["signal"], &executed["stdout"]),
        (&json!(139), &json!(11), &json!("out\n"))
    );
    let executed = run(&served, "exit 139").await;
    assert_eq!((&executed["exit_code"], executed.get("signal")), (&json!(139), None));
}

#[tokio::test(flavor = "multi_thread")]
async fn ordinary_result_has_only_the_ordinary_keys() {
    let served = serve(&[]).await;
    let executed = run(&served, "exit 3").await;
    let keys: Vec<_> = executed.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["duration_ms", "exit_code", "stderr", "stdout"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn timeout_kills_the_code_and_returns_its_output() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    let code = "echo before; echo oops >&2; sleep 100; echo after";
    let arguments = json!({"environment_id": id, "code": code, "timeout_seconds": 0.5});
    let result = served.raw("execute", arguments).await.unwrap();
    assert_eq!(result.is_error, Some(true));
    assert_eq!(
        result.content[0].as_text().unwrap().text,
        "the call reached its timeout of 0.5 s, and all its processes were killed\n\
         For execute, set a longer timeout_seconds, or start the work in the background and read its log later. For \
         install_packages, install fewer packages at a time.\n\
         stdout until then:\nbefore\n\nstderr until then:\noops\n"
    );
    assert_eq!(result.meta.unwrap().0["waggle/error"]["code"], "timed_out");
    let object = result.structured_content.unwrap();
    for (key, value) in [
        ("timed_out", json!(true)),
        ("exit_code", json!(143)),
        ("signal", json!(15)),
        ("stdout", json!("before\n")),
        ("stderr", json!("oops\n")),
    ] {
        assert_eq!(object[key], value, "{key}");
    }
    let duration_ms = object["duration_ms"].as_u64().unwrap();
    assert!((500..5000).contains(&duration_ms), "{duration_ms}");
    assert_eq!(object.get("cancelled"), None);
    // Some clients show a model only the structured content.
    let hint = object["hint"].as_str().unwrap();
    assert!(hint.contains("reached its timeout of 0.5 s") && hint.contains("longer timeout_seconds"), "{hint}");
}

#[tokio::test(flavor = "multi_thread")]
async fn install_has_its_own_timeout() {
    let served = serve(&["--runtime-shell-install-command", "/bin/sh install.sh", "--install-timeout", "500ms"]).await;
    let id = served.create("shell").await;
    let install = json!({"environment_id": id, "path": "install.sh", "content": "echo \"unpacking $1\"; sleep 100"});
    served.call("write_file", install).await;
    let result = served.raw("install_packages", json!({"environment_id": id, "packages": "jq"})).await.unwrap();
    assert_eq!(result.meta.unwrap().0["waggle/error"]["code"], "timed_out");
    let object = result.structured_content.unwrap();
    assert_eq!((&object["stdout"], &object["signal"]), (&json!("unpacking jq\n"), &json!(15)));
    // `execute` has a longer timeout than an installation here.
    let executed = served.call("execute", json!({"environment_id": id, "code": "sleep 1; echo awake"})).await;
    assert_eq!(executed["stdout"], "awake\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn long_output_loses_its_middle() {
    let served = serve(&[]).await;
    let executed = run(&served, "head -c 1000000 /dev/zero | tr '\\0' x; echo end").await;
    assert_eq!(executed["stdout_lost"], json!({"from": END_BYTES, "to": 1_000_004 - END_BYTES}));
    let stdout = executed["stdout"].as_str().unwrap();
    assert!(stdout.starts_with("xxx") && stdout.ends_with("end\n") && stdout.len() < 70_000);
    assert_eq!((executed.get("stderr_lost"), executed.get("stderr_file")), (None, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn length_of_outputs_is_set_by_the_operator_or_for_one_call() {
    let served = serve(&["--output-bytes", "2000"]).await;
    let id = served.create("shell").await;
    let run = async |more: Value| {
        let mut arguments = json!({"environment_id": id, "code": "head -c 300000 /dev/zero | tr '\\0' x"});
        arguments.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        served.call("execute", arguments).await
    };
    assert_eq!(run(json!({})).await["stdout_lost"], json!({"from": 1000, "to": 299_000}));
    let long = run(json!({"output_bytes": 300_000})).await;
    assert_eq!((long["stdout"].as_str().unwrap().len(), long.get("stdout_lost")), (300_000, None));
    for invalid in [0, 524_289] {
        let arguments = json!({"environment_id": id, "code": "true", "output_bytes": invalid});
        let (text, _) = served.refused("execute", arguments).await;
        assert_eq!(text, format!("output_bytes: {invalid} is invalid; must be an integer from 1 to 524288"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_result_is_larger_than_a_client_can_read() {
    let served = serve(&[]).await;
    let id = served.create("python").await;
    let files = "import os\nfor n in range(9000): open('\\x01' * 100 + str(n), 'w')\nprint(len(os.listdir()))";
    served.call("execute", json!({"environment_id": id, "code": files})).await;
    let quotes = "import sys\nsys.stdout.write('\"\\n' * 260000); sys.stderr.write('\\x01' * 520000)";
    let text = "open('text', 'w').write('\"\\x01\\n' * 300000); open('bytes', 'wb').write(b'\\xff' * 900000)";
    served.call("execute", json!({"environment_id": id, "code": text})).await;
    let waiting = "import time; sys.stdout.flush(); sys.stderr.flush(); time.sleep(60)";
    for (tool, arguments) in [
        ("execute", json!({"code": quotes, "output_bytes": 524_288})),
        ("execute", json!({"code": format!("{quotes}\n{waiting}"), "output_bytes": 524_288, "timeout_seconds": 3})),
        ("list_files", json!({})),
        ("read_file", json!({"path": "text", "limit": 700_000})),
        ("read_file", json!({"path": "bytes", "encoding": "base64"})),
    ] {
        let mut arguments = arguments;
        arguments["environment_id"] = json!(id);
        let answer = raw::stateless_call(&served.url, tool, &arguments, Some("token")).await.text().await.unwrap();
        let longest = answer.lines().map(str::len).max().unwrap();
        assert!((300_000..=1_000_000).contains(&longest), "{tool}: {longest}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn long_output_is_cut_between_characters() {
    let served = serve(&[]).await;
    // Each character has three bytes, so a limit that is a power of two always cuts through a character.
    let executed = run(&served, "printf '%0.s€' $(seq 300000)").await;
    let lost = &executed["stdout_lost"];
    assert_eq!(*lost, json!({"from": END_BYTES / 3 * 3, "to": 900_000 - END_BYTES / 3 * 3}));
    let stdout = executed["stdout"].as_str().unwrap();
    assert!(!stdout.contains('\u{fffd}'));
    assert_eq!(stdout.matches('€').count(), 2 * (END_BYTES / 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn long_binary_output_is_counted_in_its_own_bytes() {
    let served = serve(&[]).await;
    let executed = run(&served, "head -c 600000 /dev/zero | tr '\\0' '\\377'").await;
    assert_eq!(executed["stdout_lost"], json!({"from": END_BYTES, "to": 600_000 - END_BYTES}));
    assert_eq!(executed["stdout"].as_str().unwrap().matches('\u{fffd}').count(), 2 * END_BYTES);
}
