// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Errors of invalid input. Invalid arguments give a tool result. An unknown tool and a failure of the server give a
//! protocol error.

use std::sync::atomic::Ordering::SeqCst;

use serde_json::{Value, json};
use waggle::http;

use crate::served::{Served, UNKNOWN_ID, serve, serve_trouble, settings};

async fn check(served: &Served, tool: &'static str, arguments: Value, kind: &str, message: &str) {
    let shown = arguments.to_string().chars().take(200).collect::<String>();
    let (text, found) = served.refused(tool, arguments).await;
    assert_eq!((text.as_str(), found.as_str()), (message, kind), "{tool}({shown})");
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_name_the_invalid_argument() {
    let served = serve(&[]).await;
    for (tool, arguments, message) in [
        (
            "create_environment",
            json!({"language": "python", "cpu": 4}),
            "unknown argument \"cpu\" for create_environment; allowed: cpus, disk_mb, environment, fork_of, image, \
             language, memory_mb, name, network, saved, timeout_minutes, wait",
        ),
        (
            "create_environment",
            json!({"language": "python", "cpus": 2}),
            "cpus: 2 is invalid; must be an integer from 1 to 1, the maximum of this server; its operator can raise \
             the maximum with WAGGLE_MAX_CPUS",
        ),
        (
            "create_environment",
            json!({"language": "python", "image": "oci:/srv/images/python"}),
            "image: invalid image reference \"oci:/srv/images/python\": must be an image in a registry, for example \
             python:3.13 or ghcr.io/owner/name:1.0; folders and archives of the server's machine cannot be used",
        ),
        ("list_environments", json!({"all": true}), "unknown argument \"all\" for list_environments; allowed: none"),
        ("execute", json!({"environment_id": UNKNOWN_ID}), "missing argument \"code\" for execute; it is required"),
        ("create_environment", json!({}), "missing argument language, fork_of or saved; one of them is required"),
        (
            "create_environment",
            json!({"language": "python", "runtime": "node"}),
            "arguments \"language\" and \"runtime\" have different values; give only \"language\"",
        ),
        (
            "execute",
            json!({"environment_id": UNKNOWN_ID, "code": ["print(1)"]}),
            "invalid argument \"code\": must be a string",
        ),
        (
            "execute",
            json!({"environment_id": UNKNOWN_ID, "code": "1", "timeout_seconds": "soon"}),
            "invalid argument \"timeout_seconds\": must be a number",
        ),
        (
            "create_environment",
            json!({"runtime": "ruby"}),
            "invalid argument \"language\": must be one of: python, node, shell",
        ),
    ] {
        check(&served, tool, arguments, "invalid_argument", message).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_for_invalid_values_say_what_is_valid() {
    let served = serve(&[]).await;
    for (tool, arguments, message) in [
        (
            "create_environment",
            json!({"language": "python", "timeout_minutes": 61}),
            "timeout_minutes: 61 is too large; must be at most 60",
        ),
        (
            "create_environment",
            json!({"language": "python", "name": "a\nb"}),
            "name: must not contain control characters, such as line breaks",
        ),
        (
            "execute",
            json!({"environment_id": "python-1", "code": "1"}),
            "environment_id: invalid id; must look like 123e4567-e89b-42d3-a456-426614174000",
        ),
        (
            "execute",
            json!({"environment_id": UNKNOWN_ID, "code": "1", "timeout_seconds": 300.5}),
            "timeout_seconds: 300.5 is too large; must be at most 300",
        ),
        ("execute", json!({"environment_id": UNKNOWN_ID, "code": ""}), "code must not be empty"),
        (
            "execute",
            json!({"environment_id": UNKNOWN_ID, "code": "x".repeat(512_001)}),
            "code: 512001 bytes are too many; must be at most 512000 bytes in one call; put data into files with \
             write_file",
        ),
        (
            "write_file",
            json!({"environment_id": UNKNOWN_ID, "path": "big", "content": "x".repeat(10 * 1024 * 1024 + 1)}),
            "content: 10485761 bytes are too many; must be at most 10485760 bytes in one call; write the file in \
             parts with append, or create it with execute",
        ),
        (
            "read_file",
            json!({"environment_id": UNKNOWN_ID, "path": "a\0b"}),
            "path: must not contain NUL characters; the first is at byte 1",
        ),
        (
            "read_file",
            json!({"environment_id": UNKNOWN_ID, "path": ""}),
            "path: must not be empty; must be absolute, or relative to /home/sandbox",
        ),
        (
            "install_packages",
            json!({"environment_id": UNKNOWN_ID, "packages": "  "}),
            "packages: must not be empty; must be one or more names separated by white space or commas",
        ),
    ] {
        check(&served, tool, arguments, "invalid_argument", message).await;
    }
    let (text, _) =
        served.refused("install_packages", json!({"environment_id": UNKNOWN_ID, "packages": "jq --index-url=x"})).await;
    assert!(text.starts_with("packages: invalid package name \"--index-url=x\""), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rejects_invalid_stdin_environment_and_working_directory() {
    let served = serve(&[]).await;
    for (arguments, message) in [
        (
            json!({"environment_id": UNKNOWN_ID, "code": "1", "stdin": "x".repeat(10 * 1024 * 1024 + 1)}),
            "stdin: 10485761 bytes are too many; must be at most 10485760 bytes in one call; put data into files with \
             write_file",
        ),
        (
            json!({"environment_id": UNKNOWN_ID, "code": "1", "environment": {"PATH": "/bin"}}),
            "environment: PATH must not be set, because waggle finds the interpreter through PATH; set PATH in the \
             code instead",
        ),
        (
            json!({"environment_id": UNKNOWN_ID, "code": "1", "environment": {"A=B": "c"}}),
            "environment: invalid name \"A=B\"; must be letters, digits and _, and must not start with a digit",
        ),
        (
            json!({"environment_id": UNKNOWN_ID, "code": "1", "working_directory": ""}),
            "working_directory: must not be empty; must be absolute, or relative to /home/sandbox",
        ),
    ] {
        check(&served, "execute", arguments, "invalid_argument", message).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_and_destroyed_environments_have_different_errors() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    served.call("destroy_environment", json!({"environment_id": id})).await;
    for (tool, extra) in [
        ("execute", json!({"code": "true"})),
        ("install_packages", json!({"packages": "jq"})),
        ("write_file", json!({"path": "a", "content": ""})),
        ("read_file", json!({"path": "a"})),
        ("list_files", json!({})),
    ] {
        let with = |id: &str| {
            let mut arguments = extra.clone();
            arguments["environment_id"] = json!(id);
            arguments
        };
        let unknown =
            format!("environment {UNKNOWN_ID} not found; list_environments returns the ids of your environments");
        check(&served, tool, with(UNKNOWN_ID), "environment_not_found", &unknown).await;
        let destroyed = format!("environment {id} has been destroyed; create a new one with create_environment");
        check(&served, tool, with(&id), "environment_destroyed", &destroyed).await;
    }
    let unknown = format!("environment {UNKNOWN_ID} not found; list_environments returns the ids of your environments");
    check(&served, "destroy_environment", json!({"environment_id": UNKNOWN_ID}), "environment_not_found", &unknown)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_files_have_distinct_errors() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    let code = "mkdir folder; touch file; mkfifo pipe";
    served.call("execute", json!({"environment_id": id, "code": code})).await;
    for (path, kind) in [("missing", "not_found"), ("folder", "is_a_directory"), ("pipe", "not_a_regular_file")] {
        let (text, found) = served.refused("read_file", json!({"environment_id": id, "path": path})).await;
        assert_eq!(found, kind, "{text}");
        assert!(text.contains(path), "{text}");
    }
    let (_, kind) = served.refused("list_files", json!({"environment_id": id, "path": "file"})).await;
    assert_eq!(kind, "not_a_directory");
    let (_, kind) = served.refused("list_files", json!({"environment_id": id, "path": "missing"})).await;
    assert_eq!(kind, "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn rejects_the_eleventh_environment_until_one_is_destroyed() {
    let served = serve(&[]).await;
    let mut ids = Vec::new();
    for _ in 0..10 {
        ids.push(served.create("shell").await);
    }
    let full = "this server has reached its maximum of 10 environments, suspended ones included; destroy one \
                with destroy_environment, or retry when another one has ended";
    check(&served, "create_environment", json!({"language": "shell"}), "capacity_reached", full).await;
    served.call("destroy_environment", json!({"environment_id": ids[3]})).await;
    served.create("shell").await;
    check(&served, "create_environment", json!({"language": "shell"}), "capacity_reached", full).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_start_is_a_result_and_an_unknown_tool_a_protocol_error() {
    let served = serve_trouble(&[]).await;
    let (text, code) = served.refused("create_environment", json!({"language": "node"})).await;
    assert_eq!(code, "start_failed");
    // The cause, which may hold paths and text of the image, is in the log.
    let reason = ": failed while preparing the image: the image is invalid, damaged or not supported; the server's log \
                  has the details, with this id";
    assert!(text.ends_with(reason), "{text}");
    let (code, text) = served.failed("make_coffee", json!({})).await;
    assert_eq!(code, -32602);
    assert!(text.starts_with("unknown tool \"make_coffee\"; available: create_environment, "), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn panic_is_a_protocol_error_and_affects_nothing_else() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    served.faults.panics.store(true, SeqCst);
    let write = json!({"environment_id": id, "path": "x", "content": ""});
    let (code, text) = served.failed("write_file", write).await;
    assert_eq!((code, text.as_str()), (-32603, "write_file panicked; see the server's log"));
    let executed = served.call("execute", json!({"environment_id": id, "code": "echo well"})).await;
    assert_eq!(executed["stdout"], "well\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn bind_error_names_the_address_and_the_setting() {
    let taken = http::bind(settings(&[]).listen_addr).await.unwrap();
    let address = taken.local_addr().unwrap();
    let nowhere = "192.0.2.1:0".parse().unwrap();
    for (address, why) in
        [(address, "another program uses this address"), (nowhere, "this machine does not have this address")]
    {
        let fault = http::bind(address).await.unwrap_err().to_string();
        assert!(fault.starts_with(&format!("failed to listen on {address}; {why}")), "{fault}");
        assert!(fault.contains("--listen-addr or WAGGLE_LISTEN_ADDR"), "{fault}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rejects_foreign_origins_and_hosts() {
    let served = serve(&[]).await;
    let post = |name: &'static str, value: &'static str| {
        let request = reqwest::Client::new().post(&served.url).header("content-type", "application/json");
        let request = request.header("accept", "application/json, text/event-stream").header(name, value);
        request.body(r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#).send()
    };
    assert_eq!(post("origin", "http://evil.example").await.unwrap().status().as_u16(), 403);
    assert_eq!(post("host", "evil.example").await.unwrap().status().as_u16(), 403);
}
