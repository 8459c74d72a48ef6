// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The eight tools in ordinary use.

use serde_json::{Value, json};

use crate::{
    raw,
    served::{serve, serve_trouble},
};

#[tokio::test(flavor = "multi_thread")]
async fn environment_serves_every_tool_until_it_is_destroyed() {
    let served = serve(&[]).await;
    let created = served.call("create_environment", json!({"language": "python", "name": "numbers"})).await;
    assert_eq!(created["name"], "numbers");
    assert_eq!(
        (&created["status"], &created["runtime"], &created["timeout"]),
        (&json!("running"), &json!("python"), &json!("30m0s"))
    );
    let id = created["environment_id"].as_str().unwrap();

    let written = served
        .call("write_file", json!({"environment_id": id, "path": "data/numbers.csv", "content": "n\n1\n2\n39\n"}))
        .await;
    assert_eq!(written, json!({"bytes_written": 9, "path": "data/numbers.csv", "status": "written"}));

    let code = "import csv\ntotal = sum(int(row['n']) for row in csv.DictReader(open('data/numbers.csv')))\n\
                open('total.txt', 'w').write(str(total))\nprint('total', total)";
    let executed = served.call("execute", json!({"environment_id": id, "code": code, "timeout_seconds": 30.0})).await;
    assert_eq!(
        (&executed["exit_code"], &executed["stdout"], &executed["stderr"]),
        (&json!(0), &json!("total 42\n"), &json!(""))
    );
    assert!(executed["duration_ms"].is_u64());

    let read = served.raw("read_file", json!({"environment_id": id, "path": "/home/sandbox/total.txt"})).await.unwrap();
    assert_eq!(read.content[0].as_text().unwrap().text, "42");
    assert_eq!(read.structured_content, None);

    let listed = served.call("list_files", json!({"environment_id": id})).await;
    assert_eq!((&listed["count"], &listed["path"]), (&json!(2), &json!("/home/sandbox")));
    let names: Vec<_> =
        listed["files"].as_array().unwrap().iter().map(|file| (&file["name"], &file["is_dir"])).collect();
    assert_eq!(names, [(&json!("data"), &json!(true)), (&json!("total.txt"), &json!(false))]);
    assert_eq!(listed["files"][1]["size"], 2);

    let shell = json!({"environment_id": id, "language": "shell", "code": "echo out; echo err >&2; exit 7"});
    let executed = served.call("execute", shell).await;
    assert_eq!(
        (&executed["exit_code"], &executed["stdout"], &executed["stderr"]),
        (&json!(7), &json!("out\n"), &json!("err\n"))
    );

    let destroyed = served.call("destroy_environment", json!({"environment_id": id})).await;
    assert_eq!(destroyed, json!({"message": format!("Environment {id} has been destroyed"), "status": "destroyed"}));
    assert_eq!(served.call("destroy_environment", json!({"environment_id": id})).await, destroyed);
    assert_eq!(served.call("list_environments", json!({})).await, json!({"count": 0, "environments": []}));
    assert_eq!(served.machines_alive(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn environments_are_listed_oldest_first() {
    let served = serve(&[]).await;
    let mut ids = Vec::new();
    for runtime in ["shell", "python", "node"] {
        ids.push(served.create(runtime).await);
    }
    let listed = served.call("list_environments", json!({})).await;
    let listed: Vec<_> = listed["environments"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["environment_id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(listed, ids);
}

#[tokio::test(flavor = "multi_thread")]
async fn operator_command_installs_packages() {
    let served = serve(&["--runtime-shell-install-command", "/usr/bin/echo would install"]).await;
    let id = served.create("shell").await;
    let installed = served.call("install_packages", json!({"environment_id": id, "packages": "jq  ripgrep==14"})).await;
    assert_eq!(
        (&installed["exit_code"], &installed["stdout"], &installed["stderr"]),
        (&json!(0), &json!("would install jq ripgrep==14\n"), &json!(""))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn binary_file_is_described_without_an_encoding() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    let code = "printf '\\377\\000\\200' > raw.bin";
    served.call("execute", json!({"environment_id": id, "code": code})).await;
    let read = served.raw("read_file", json!({"environment_id": id, "path": "raw.bin"})).await.unwrap();
    let text = &read.content[0].as_text().unwrap().text;
    assert!(text.starts_with("[binary file: 3 bytes, begins with ff 00 80. Process it with execute"), "{text}");
    // A text with NUL characters is no text that a model can read.
    served.call("execute", json!({"environment_id": id, "code": "printf 'a\\000b' > raw.bin"})).await;
    let read = served.raw("read_file", json!({"environment_id": id, "path": "raw.bin"})).await.unwrap();
    assert!(read.content[0].as_text().unwrap().text.starts_with("[binary file: 3 bytes, begins with 61 00 62."));
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_are_images() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    let png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg==";
    // The header of a JPEG; the smallest GIF and WebP.
    let jpeg = "/9j/4AAQSkZJRgABAQEASABIAAD/wAARCAABAAEDASIAAhEBAxEB";
    let gif = "R0lGODlhAQABAAAAACwAAAAAAQABAAACAkQBADs=";
    let webp = "UklGRh4AAABXRUJQVlA4TBEAAAAvAAAAAAfQ//73v/+BiOh/AAA=";
    let image = |data: &str, kind: &str| json!([{"type": "image", "data": data, "mimeType": kind}]);
    for (data, content) in [
        (png, image(png, "image/png")),
        (jpeg, image(jpeg, "image/jpeg")),
        (gif, image(gif, "image/gif")),
        (webp, image(webp, "image/webp")),
    ] {
        let write = json!({"environment_id": id, "path": "a file", "content": data, "encoding": "base64"});
        served.call("write_file", write).await;
        let read = served.raw("read_file", json!({"environment_id": id, "path": "a file"})).await.unwrap();
        assert_eq!(serde_json::to_value(&read.content).unwrap(), content);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn create_reports_its_stages() {
    let served = serve_trouble(&[]).await;
    // This call never ends. If the call ended at once, its reports could arrive after the answer.
    let reports = tokio::select! {
        reports = served.until_reported() => reports,
        made = served.raw("create_environment", json!({"language": "shell"})) => panic!("the create ended: {made:?}"),
    };
    assert!(reports.windows(2).all(|pair| pair[0].0 < pair[1].0), "{reports:?}");
    assert!(reports.iter().all(|(progress, total, _)| *progress < 3.0 && *total == Some(3.0)), "{reports:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_tool_has_hints_and_schemas() {
    let served = serve(&[]).await;
    let tools = served.client.list_all_tools().await.unwrap();
    let names: Vec<_> = tools.iter().map(|tool| tool.name.as_ref()).collect();
    assert_eq!(
        names,
        [
            "create_environment",
            "destroy_environment",
            "list_environments",
            "execute",
            "install_packages",
            "write_file",
            "read_file",
            "list_files"
        ]
    );
    for tool in tools {
        let hints = tool.annotations.as_ref().unwrap();
        assert!(hints.read_only_hint.is_some() && hints.destructive_hint.is_some(), "{}", tool.name);
        assert!(tool.title.is_some() && tool.description.as_ref().unwrap().len() < 2000);
        assert_eq!(tool.output_schema.is_some(), tool.name != "read_file");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stateless_answer_names_the_server() {
    let served = serve(&[]).await;
    let answer = raw::stateless_call(&served.url, "list_environments", &json!({}), None).await;
    let answer: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    let server = json!({"name": "Waggle", "version": env!("CARGO_PKG_VERSION")});
    assert_eq!(answer["result"]["_meta"]["io.modelcontextprotocol/serverInfo"], server);
    // A client with a session got the server's name from `initialize`.
    assert_eq!(served.raw("list_environments", json!({})).await.unwrap().meta, None);
    assert_eq!(served.client.peer_info().unwrap().server_info.as_ref().unwrap().name, "Waggle");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_pages_answer() {
    let served = serve(&[]).await;
    assert_eq!(served.get("/healthz").await, (200, json!({"status": "ok"})));
    assert_eq!(served.get("/readyz").await, (200, json!({"status": "ok", "checks": {"machines": "ok"}})));
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_in_the_home_are_found_first() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    let code =
        "mkdir -p venv/bin && printf '#!/bin/sh\\necho the one in the home' > venv/bin/cat && chmod +x venv/bin/cat";
    served.call("execute", json!({"environment_id": id, "code": code})).await;
    let executed = served.call("execute", json!({"environment_id": id, "code": "cat; echo ${NODE_PATH##*/}"})).await;
    assert_eq!(executed["stdout"], "the one in the home\nnode_modules\n");
}
