// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Callers with different tokens: no caller can see the environments of another.

use serde_json::{Value, json};

use crate::{
    raw,
    served::{ADA, BOB, UNKNOWN_ID, call, connect_as, serve_guarded, tokens},
};

#[tokio::test(flavor = "multi_thread")]
async fn rejects_callers_without_a_valid_token() {
    let served = serve_guarded(&[]).await;
    for (header, challenge) in [
        (None, "Bearer realm=\"waggle\""),
        (Some("Bearer eve-has-no-token-at-all"), "Bearer realm=\"waggle\", error=\"invalid_token\""),
        (Some("Basic YWRhOmFkYQ=="), "Bearer realm=\"waggle\", error=\"invalid_token\""),
    ] {
        for method in ["GET", "POST", "DELETE"] {
            let request = reqwest::Client::new().request(method.parse().unwrap(), &served.url);
            let request = match header {
                Some(header) => request.header("authorization", header),
                None => request,
            };
            let answer = request.body("{}").send().await.unwrap();
            assert_eq!(
                (answer.status().as_u16(), answer.headers()["www-authenticate"].to_str().unwrap()),
                (401, challenge)
            );
            let body: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
            assert_eq!(body["error"]["data"]["code"], "unauthorized", "{body}");
        }
    }
    // Health checks need no token.
    assert_eq!(served.get("/healthz").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_tool_reveals_environments_of_other_callers() {
    let served = serve_guarded(&[]).await;
    let id = served.create("shell").await;
    served.call("write_file", json!({"environment_id": id, "path": "kept", "content": "ada's"})).await;
    let (bob, _) = connect_as(&served.url, Some(BOB)).await;
    // In the second round the environment is destroyed, but the server still remembers its id.
    for _ in 0..2 {
        for (tool, mut arguments) in [
            ("destroy_environment", json!({})),
            ("execute", json!({"code": "true"})),
            ("install_packages", json!({"packages": "jq"})),
            ("write_file", json!({"path": "kept", "content": "bob's"})),
            ("read_file", json!({"path": "kept"})),
            ("list_files", json!({})),
        ] {
            let mut answers = Vec::new();
            for asked in [&id, UNKNOWN_ID] {
                arguments["environment_id"] = json!(asked);
                let result = call(&bob, tool, arguments.clone()).await.unwrap();
                assert_eq!(result.is_error, Some(true), "{tool}");
                answers.push(serde_json::to_string(&result).unwrap().replace(asked, "ID"));
            }
            assert_eq!(answers[0], answers[1], "{tool}");
            assert!(answers[0].contains("\"environment_not_found\""), "{}", answers[0]);
        }
        let listed = call(&bob, "list_environments", json!({})).await.unwrap().structured_content.unwrap();
        assert_eq!(listed, json!({"count": 0, "environments": []}));
        let made = call(&bob, "create_environment", json!({"language": "shell"})).await.unwrap();
        let own = made.structured_content.unwrap()["environment_id"].take();
        let listed = call(&bob, "list_environments", json!({})).await.unwrap().structured_content.unwrap();
        assert_eq!((&listed["count"], &listed["environments"][0]["environment_id"]), (&json!(1), &own));
        call(&bob, "destroy_environment", json!({"environment_id": own})).await.unwrap();
        if served.call("list_environments", json!({})).await["count"] == 1 {
            let read = served.raw("read_file", json!({"environment_id": id, "path": "kept"})).await.unwrap();
            assert_eq!(read.content[0].as_text().unwrap().text, "ada's");
            served.call("destroy_environment", json!({"environment_id": id})).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn session_of_another_caller_is_unknown() {
    let served = serve_guarded(&[]).await;
    let (_, _, id) = raw::greet(&served.url, Some(ADA)).await;
    let id = id.unwrap();
    let unknown = raw::list_in(&served.url, Some(BOB), UNKNOWN_ID).await;
    assert_eq!(unknown.0, 404);
    assert_eq!(raw::list_in(&served.url, Some(BOB), &id).await, unknown);
    let delete = reqwest::Client::new().delete(&served.url).header("mcp-session-id", &id);
    delete.header("authorization", format!("Bearer {BOB}")).send().await.unwrap();
    assert_eq!(raw::list_in(&served.url, Some(ADA), &id).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn reloaded_tokens_apply_at_once() {
    let served = serve_guarded(&[]).await;
    let id = served.create("shell").await;
    let next = "ada-has-another-one-now";
    served.tokens.send(tokens(&format!("ada {next}"))).unwrap();
    for old in [ADA, BOB] {
        assert_eq!(raw::greet(&served.url, Some(old)).await.0, 401);
    }
    let (ada, _) = connect_as(&served.url, Some(next)).await;
    let listed = call(&ada, "list_environments", json!({})).await.unwrap().structured_content.unwrap();
    assert_eq!(listed["environments"][0]["environment_id"], json!(id));
}
