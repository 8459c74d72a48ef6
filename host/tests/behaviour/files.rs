// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Files in parts and in base64, modes, and paths of folders.

use serde_json::{Value, json};

use crate::served::{Served, serve};

/// Reads a file. Returns the text blocks of the result, and the result's description of the part that was read.
async fn read(served: &Served, arguments: Value) -> (Vec<String>, Value) {
    let result = served.raw("read_file", arguments).await.unwrap();
    assert_eq!((result.is_error, result.structured_content), (Some(false), None));
    let blocks = result.content.iter().map(|block| block.as_text().unwrap().text.clone()).collect();
    (blocks, result.meta.unwrap().0["waggle/part"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn text_read_in_parts_is_complete() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    let text = "grüße, 世界, and 🐝s\n".repeat(40);
    served.call("write_file", json!({"environment_id": id, "path": "text", "content": text})).await;
    let (mut offset, mut whole, mut reads) = (json!(0), String::new(), 0);
    while !offset.is_null() {
        let (blocks, part) =
            read(&served, json!({"environment_id": id, "path": "text", "offset": offset, "limit": 100})).await;
        assert_eq!((&part["file_size"], blocks.len()), (&json!(text.len()), 1));
        let (shown, note) = blocks[0].split_at(usize::try_from(part["bytes"].as_u64().unwrap()).unwrap());
        whole.push_str(shown);
        offset = part["next_offset"].clone();
        assert_eq!(note.is_empty(), offset.is_null(), "{note}");
        assert!(note.is_empty() || note.ends_with(&format!("; read on with offset {offset}]")), "{note}");
        reads += 1;
    }
    assert_eq!(whole, text);
    assert!(reads > text.len() / 100, "{reads}");
}

#[tokio::test(flavor = "multi_thread")]
async fn base64_preserves_all_bytes() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    // All bytes from 0 to 255.
    let base64 = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+P0BBQkNERUZH\
                  SElKS0xNTk9QUVJTVFVWV1hZWltcXV5fYGFiY2RlZmdoaWprbG1ub3BxcnN0dXZ3eHl6e3x9fn+AgYKDhIWGh4iJiouMjY6P\
                  kJGSk5SVlpeYmZqbnJ2en6ChoqOkpaanqKmqq6ytrq+wsbKztLW2t7i5uru8vb6/wMHCw8TFxsfIycrLzM3Oz9DR0tPU1dbX\
                  2Nna29zd3t/g4eLj5OXm5+jp6uvs7e7v8PHy8/T19vf4+fr7/P3+/w==";
    let write = json!({"environment_id": id, "path": "all", "content": base64, "encoding": "base64"});
    assert_eq!(served.call("write_file", write).await["bytes_written"], 256);
    let (blocks, part) = read(&served, json!({"environment_id": id, "path": "all", "encoding": "base64"})).await;
    assert_eq!((blocks, &part["next_offset"]), (vec![base64.to_owned()], &Value::Null));
    let arguments = json!({"environment_id": id, "path": "all", "encoding": "base64", "offset": 253, "limit": 9});
    assert_eq!(read(&served, arguments).await.0, ["/f7/"]);
    let counted = served.call("execute", json!({"environment_id": id, "code": "sort -u all | wc -c <all"})).await;
    assert_eq!(counted["stdout"], "256\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn write_appends_and_sets_the_mode() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    let write = |content: &str, extra: Value| {
        let mut arguments = json!({"environment_id": id, "path": "bin/run", "content": content});
        arguments.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        served.call("write_file", arguments)
    };
    write("#!/bin/sh\n", json!({"mode": "0755"})).await;
    write("echo ran\n", json!({"append": true})).await;
    let executed = served.call("execute", json!({"environment_id": id, "code": "bin/run"})).await;
    assert_eq!(executed["stdout"], "ran\n");
    write("#!/bin/sh\necho again\n", json!({})).await;
    let executed = served.call("execute", json!({"environment_id": id, "code": "bin/run"})).await;
    assert_eq!(executed["stdout"], "again\n", "a replaced file keeps its mode");
    write("", json!({"append": true, "mode": "600"})).await;
    let listed = served.call("list_files", json!({"environment_id": id, "path": "bin"})).await;
    assert_eq!((&listed["files"][0]["mode"], &listed["files"][0]["size"]), (&json!("-rw-------"), &json!(21)));
}

#[tokio::test(flavor = "multi_thread")]
async fn omitted_output_can_be_read_from_its_file() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    let executed = served.call("execute", json!({"environment_id": id, "code": "seq 200000"})).await;
    let (from, to) =
        (executed["stdout_lost"]["from"].as_u64().unwrap(), executed["stdout_lost"]["to"].as_u64().unwrap());
    let path = executed["stdout_file"].as_str().unwrap();
    let (mut middle, mut offset) = (String::new(), from);
    while offset < to {
        let arguments = json!({"environment_id": id, "path": path, "offset": offset, "limit": to - offset});
        let (blocks, part) = read(&served, arguments).await;
        let bytes = part["bytes"].as_u64().unwrap();
        middle.push_str(&blocks[0][..usize::try_from(bytes).unwrap()]);
        offset += bytes;
    }
    let stdout = executed["stdout"].as_str().unwrap();
    let (head, tail) = (stdout.split_once("\n[").unwrap().0, stdout.split_once("]\n").unwrap().1);
    let whole: String = (1..=200_000).map(|number| format!("{number}\n")).collect();
    assert!(format!("{head}{middle}{tail}") == whole, "{} bytes were left out, {} read", to - from, middle.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn truncated_output_file_reports_its_size() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    let code = "seq 1000000000 | head -c 70000000; seq 200000 >&2";
    let executed = served.call("execute", json!({"environment_id": id, "code": code})).await;
    assert_eq!((&executed["stdout_file_bytes"], executed.get("stderr_file_bytes")), (&json!(64 * 1024 * 1024), None));
    let path = executed["stdout_file"].as_str().unwrap();
    let listed = served.call("list_files", json!({"environment_id": id, "path": "/tmp"})).await;
    let files = listed["files"].as_array().unwrap();
    let size = files.iter().find(|file| path.ends_with(file["name"].as_str().unwrap())).map(|file| &file["size"]);
    assert_eq!(size, Some(&json!(64 * 1024 * 1024)));
}

#[tokio::test(flavor = "multi_thread")]
async fn large_file_is_read_in_parts() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    let code = "head -c 12000000 /dev/zero | tr '\\0' x >big; printf end >>big";
    served.call("execute", json!({"environment_id": id, "code": code})).await;
    for (arguments, bytes) in
        [(json!({}), 65_536), (json!({"limit": 100_000}), 100_000), (json!({"limit": 1e9}), 700_000)]
    {
        let mut arguments = arguments;
        arguments
            .as_object_mut()
            .unwrap()
            .extend([("environment_id".to_owned(), json!(id)), ("path".to_owned(), json!("big"))]);
        let (blocks, part) = read(&served, arguments).await;
        let note = format!("[bytes 0 to {bytes} of 12000003; read on with offset {bytes}]");
        assert!(blocks[0].ends_with(&note) && part["bytes"] == bytes, "{part}");
    }
    let (blocks, _) = read(&served, json!({"environment_id": id, "path": "big", "offset": 11_999_999})).await;
    assert_eq!(blocks, ["xend"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn path_of_a_folder_is_never_written_as_a_file() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    served.call("execute", json!({"environment_id": id, "code": "mkdir there; touch file"})).await;
    for path in
        ["out/", "out/.", "out/..", "a/b//", "there/", "there/.", ".", "..", "/", "//", "~", "~/", "~/.", "/tmp/.."]
    {
        for append in [false, true] {
            let write = json!({"environment_id": id, "path": path, "content": "x", "append": append});
            let (text, kind) = served.refused("write_file", write).await;
            assert_eq!(kind, "is_a_directory", "{path}: {text}");
            assert!(text.ends_with(": the path names a folder; must end with the name of a file"), "{path}: {text}");
        }
    }
    let (text, kind) =
        served.refused("write_file", json!({"environment_id": id, "path": "there", "content": "x"})).await;
    assert_eq!(kind, "is_a_directory", "{text}");
    for (tool, path) in [
        ("read_file", "file/"),
        ("read_file", "file/."),
        ("read_file", "~/file/"),
        ("list_files", "file"),
        ("list_files", "file/"),
        ("list_files", "file/below"),
    ] {
        let (text, kind) = served.refused(tool, json!({"environment_id": id, "path": path})).await;
        assert_eq!(kind, "not_a_directory", "{tool} {path}: {text}");
    }
    let (_, kind) = served.refused("read_file", json!({"environment_id": id, "path": "out/"})).await;
    assert_eq!(kind, "not_found");
    let (_, kind) = served.refused("read_file", json!({"environment_id": id, "path": "there/"})).await;
    assert_eq!(kind, "is_a_directory");
    let listed = served.call("list_files", json!({"environment_id": id, "path": "~/", "recursive": true})).await;
    let names: Vec<_> = listed["files"].as_array().unwrap().iter().map(|file| file["name"].as_str().unwrap()).collect();
    assert_eq!((names, &listed["total"]), (vec!["file", "there"], &json!(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn rejects_invalid_file_arguments() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    for (tool, extra, message) in [
        (
            "write_file",
            json!({"content": "", "mode": "rw-r--r--"}),
            "mode: invalid file mode; must be up to four octal digits in quotes, such as \"0644\" or \"0755\"",
        ),
        (
            "write_file",
            json!({"content": "no base64!", "encoding": "base64"}),
            "content: invalid base64 (Invalid symbol 33, offset 8.); for text, omit the argument \"encoding\"",
        ),
        ("read_file", json!({"offset": -1}), "offset: -1 is invalid; must be an integer from 0 to 9007199254740992"),
        ("read_file", json!({"limit": 0.5}), "limit: 0.5 is invalid; must be an integer from 1 to 9007199254740992"),
    ] {
        let mut arguments = json!({"environment_id": id, "path": "file"});
        arguments.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let (text, kind) = served.refused(tool, arguments).await;
        assert_eq!((text.as_str(), kind.as_str()), (message, "invalid_argument"));
    }
}
