// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! HTTP requests as programs without an MCP library send them, and the refusals of requests.

use std::time::Duration;

use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, duplex, split},
    time::sleep,
};

use crate::{
    raw::{self, Session},
    served::{ADA, UNKNOWN_ID, serve, serve_guarded, until},
};

fn post(url: &str, body: &Value) -> RequestBuilder {
    Client::new().post(url).header("content-type", "application/json").body(body.to_string())
}

fn hello() -> Value {
    let about = json!({"name": "raw", "version": "1"});
    let params = json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": about});
    json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params})
}

/// A request without a session that lacks a header which its version requires.
fn stateless(url: &str, body: &Value) -> RequestBuilder {
    let mut body = body.clone();
    body["params"] = json!({"_meta": {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "1"},
    }});
    post(url, &body).header("mcp-protocol-version", "2026-07-28").header("mcp-method", "tools/call")
}

fn call(id: u32, tool: &str, arguments: &Value) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": tool, "arguments": arguments}})
}

/// Returns the status and the code of a refusal, which must be a JSON-RPC error with a message and a hint.
async fn refusal(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], "application/json");
    let body: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
    assert_eq!(body["jsonrpc"], "2.0", "{body}");
    assert!(body["error"]["message"].is_string() && body["error"]["data"]["hint"].is_string(), "{body}");
    (status, body["error"]["data"]["code"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_names_no_event_stream_gets_json() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    for accept in [None, Some("*/*"), Some("application/json")] {
        let with = |request: RequestBuilder| {
            accept.map_or(request.try_clone().unwrap(), |accept| request.header("accept", accept))
        };
        let answer = with(post(&served.url, &hello())).send().await.unwrap();
        assert_eq!(
            (answer.status().as_u16(), answer.headers()["content-type"].to_str().unwrap()),
            (200, "application/json")
        );
        let session = answer.headers()["mcp-session-id"].clone();
        let greeted: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        assert_eq!(greeted["result"]["serverInfo"]["name"], "Waggle");
        // With a progress token, the reports before the result are left out.
        let mut body = call(2, "execute", &json!({"environment_id": id, "code": "echo well"}));
        body["params"]["_meta"] = json!({"progressToken": "t"});
        let answer = with(post(&served.url, &body).header("mcp-session-id", &session)).send().await.unwrap();
        assert_eq!(answer.headers()["content-type"], "application/json");
        let answer: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        assert_eq!(answer["result"]["structuredContent"]["stdout"], "well\n", "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn first_event_without_a_message_is_sent_only_from_version_2025_11_25_on() {
    let served = serve(&[]).await;
    for (version, has_priming) in [("2024-11-05", false), ("2025-06-18", false), ("2025-11-25", true)] {
        let mut body = hello();
        body["params"]["protocolVersion"] = json!(version);
        let accept = |request: RequestBuilder| request.header("accept", "application/json, text/event-stream");
        let answer = accept(post(&served.url, &body)).send().await.unwrap();
        let session = answer.headers()["mcp-session-id"].clone();
        let mut text = answer.text().await.unwrap();
        assert!(text.starts_with("data: {"), "{text}");
        let list = json!({"jsonrpc": "2.0", "id": 2, "method": "tools/list"});
        let answer = accept(post(&served.url, &list)).header("mcp-session-id", &session).send().await.unwrap();
        text = answer.text().await.unwrap();
        let data: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("data:")).map(str::trim).collect();
        assert_eq!(data.len(), 1 + usize::from(has_priming), "{version}: {text}");
        assert_eq!(data[0].is_empty(), has_priming, "{version}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn result_of_a_call_that_ends_while_its_client_is_away_can_be_read_later() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    let session = Session::start(&served.url).await;
    let arguments = json!({"environment_id": id, "code": "echo begun; sleep 1; echo ended"});
    let mut answer = session.call(7, "execute", &arguments, Some("t")).await;
    let mut seen = String::new();
    while !seen.contains("begun") {
        seen.push_str(std::str::from_utf8(&answer.chunk().await.unwrap().unwrap()).unwrap());
    }
    drop(answer);
    sleep(Duration::from_millis(1500)).await;
    let last = seen.lines().filter_map(|line| line.strip_prefix("id:")).next_back().unwrap().trim().to_owned();
    let resumed = session.resume(&last).await;
    assert!(resumed.contains("begun\\\\nended") && resumed.contains("\"id\":7"), "{resumed}");
    // The connection may have been lost before the client got the end.
    assert!(session.resume(&last).await.contains("begun\\\\nended"));
}

#[tokio::test(flavor = "multi_thread")]
async fn resuming_by_an_id_of_the_library_does_not_disturb_a_running_call() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    let session = Session::start(&served.url).await;
    let arguments = json!({"environment_id": id, "code": "echo begun; read line <gate; echo ended"});
    served.call("execute", json!({"environment_id": id, "code": "mkfifo gate"})).await;
    let answer = session.call(7, "execute", &arguments, Some("t")).await;
    for stolen in ["0/0", "0/1", "1/0", "0/2"] {
        assert_eq!(session.resume(stolen).await, "", "{stolen}");
    }
    served.call("execute", json!({"environment_id": id, "code": "echo >gate"})).await;
    let text = answer.text().await.unwrap();
    assert!(text.contains("begun\\\\nended"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_call_is_no_report_for_a_client_that_gets_json() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    let answer = post(&served.url, &hello()).send().await.unwrap();
    let session = answer.headers()["mcp-session-id"].clone();
    let mut body = call(2, "execute", &json!({"environment_id": id, "code": "touch begun; sleep 1000"}));
    body["params"]["_meta"] = json!({"progressToken": "t"});
    let cancelled = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 2}});
    let cancel = async {
        until("the command has begun", async || {
            let listed = served.call("list_files", json!({"environment_id": id})).await;
            listed["files"].as_array().unwrap().iter().any(|file| file["name"] == "begun")
        })
        .await;
        post(&served.url, &cancelled).header("mcp-session-id", &session).send().await.unwrap();
    };
    let (answer, ()) = tokio::join!(post(&served.url, &body).header("mcp-session-id", &session).send(), cancel);
    let answer: Value = serde_json::from_str(&answer.unwrap().text().await.unwrap()).unwrap();
    assert_eq!(answer["error"]["data"]["code"], "cancelled", "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn half_characters_become_replacement_characters() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    let answer = post(&served.url, &hello()).send().await.unwrap();
    let session = answer.headers()["mcp-session-id"].clone();
    let body = call(2, "execute", &json!({"environment_id": id, "code": "printf 'cut HALF whole WHOLE'"})).to_string();
    let body = body.replace("HALF", "\\ud83d").replace("WHOLE", "\\ud83d\\ude00");
    let request = Client::new().post(&served.url).header("content-type", "application/json");
    let answer = request.header("mcp-session-id", session).body(body).send().await.unwrap();
    let answer: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    assert_eq!(answer["result"]["structuredContent"]["stdout"], "cut \u{fffd} whole 😀");
}

#[tokio::test(flavor = "multi_thread")]
async fn half_characters_over_stdio_become_replacement_characters() {
    let served = serve(&[]).await;
    let (ours, theirs) = duplex(64 * 1024);
    let story = async {
        let (input, mut output) = split(ours);
        let mut lines = BufReader::new(input).lines();
        let made = call(2, "create_environment", &json!({"language": "shell", "name": "HALF"}));
        let initialized = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
        for message in [hello(), initialized, made] {
            let line = format!("{message}\n").replace("HALF", "a \\ud83d");
            output.write_all(line.as_bytes()).await.unwrap();
        }
        let greeted = lines.next_line().await.unwrap().unwrap();
        assert!(greeted.contains("serverInfo"), "{greeted}");
        let made: Value = serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
        assert_eq!(made["result"]["structuredContent"]["name"], "a \u{fffd}", "{made}");
    };
    tokio::join!(served.converse(theirs), story);
}

#[tokio::test(flavor = "multi_thread")]
async fn long_call_answered_with_json_sends_line_breaks_and_ends_with_its_connection() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    let arguments = json!({"environment_id": id, "code": "sleep 17; echo well"});
    let answer = raw::stateless_call(&served.url, "execute", &arguments, None);
    let endless = json!({"environment_id": id, "code": "echo $$ >leader; sleep 1000", "timeout_seconds": 300});
    let closed = async {
        let mut answer = raw::stateless_call(&served.url, "execute", &endless, None).await;
        assert_eq!(answer.chunk().await.unwrap().unwrap(), "\n");
    };
    let (answer, ()) = tokio::join!(answer, closed);
    assert_eq!(answer.headers()["content-type"], "application/json");
    let text = answer.text().await.unwrap();
    assert!(text.starts_with('\n'), "{text}");
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(answer["result"]["structuredContent"]["stdout"], "well\n");
    until("the closed call's command is gone", async || {
        let alive = json!({"environment_id": id, "code": "kill -0 $(cat leader)"});
        served.call("execute", alive).await["exit_code"] != 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_is_json_with_a_code() {
    let served = serve(&[]).await;
    let host = served.url.strip_suffix("/mcp").unwrap();
    let list = json!({"jsonrpc": "2.0", "id": 2, "method": "tools/list"});
    let request = |method: Method, path: &str| Client::new().request(method, format!("{host}{path}"));
    let both = "application/json, text/event-stream";
    for (request, status, code) in [
        (post(&served.url, &list).header("mcp-session-id", UNKNOWN_ID), 404, "unknown_session"),
        (
            request(Method::GET, "/mcp").header("accept", both).header("mcp-session-id", UNKNOWN_ID),
            404,
            "unknown_session",
        ),
        (post(&served.url, &list), 400, "bad_request"),
        (post(&served.url, &list).header("mcp-protocol-version", "1999-01-01"), 400, "bad_request"),
        (post(&served.url, &list).header("host", "evil.example"), 403, "forbidden"),
        (post(&served.url, &list).header("origin", "http://evil.example"), 403, "forbidden"),
        (Client::new().post(&served.url).body("{}"), 415, "unsupported_media_type"),
        (request(Method::PUT, "/mcp"), 405, "method_not_allowed"),
        (request(Method::GET, "/mcp").header("accept", "text/html"), 406, "not_acceptable"),
        (post(&served.url, &json!([list])), 400, "not_a_message"),
        (stateless(&served.url, &list), 400, "bad_request"),
        (request(Method::POST, "/healthz"), 405, "method_not_allowed"),
        (request(Method::GET, "/environments/x/log").header("origin", "http://evil.example"), 403, "forbidden"),
        (request(Method::GET, "/"), 404, "unknown_path"),
        (request(Method::POST, "/sse"), 404, "unknown_path"),
    ] {
        assert_eq!(refusal(request.send().await.unwrap()).await, (status, code.to_owned()));
    }
    let unknown =
        post(&served.url, &list).header("mcp-session-id", UNKNOWN_ID).send().await.unwrap().text().await.unwrap();
    // Some clients open another session only after this code and this message.
    let unknown: Value = serde_json::from_str(&unknown).unwrap();
    assert_eq!(
        (&unknown["error"]["code"], &unknown["error"]["message"]),
        (&json!(-32600), &json!("Session terminated"))
    );
    assert!(unknown["error"]["data"]["hint"].as_str().unwrap().contains("initialize again"), "{unknown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn search_for_an_authorization_server_finds_nothing_and_needs_no_token() {
    let served = serve_guarded(&[]).await;
    let host = served.url.strip_suffix("/mcp").unwrap();
    for path in ["/.well-known/oauth-protected-resource/mcp", "/.well-known/oauth-authorization-server"] {
        for token in [None, Some(ADA), Some("wrong")] {
            let request = Client::new().get(format!("{host}{path}"));
            let request = match token {
                Some(token) => request.header("authorization", format!("Bearer {token}")),
                None => request,
            };
            assert_eq!(refusal(request.send().await.unwrap()).await, (404, "unknown_path".to_owned()));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoint_takes_a_trailing_slash_and_ends_sessions_with_204() {
    let served = serve(&[]).await;
    let answer = post(&format!("{}/", served.url), &hello()).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 200);
    let session = answer.headers()["mcp-session-id"].clone();
    for _ in 0..2 {
        let deleted = Client::new().delete(&served.url).header("mcp-session-id", &session).send().await.unwrap();
        assert_eq!((deleted.status().as_u16(), deleted.text().await.unwrap().as_str()), (204, ""));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_named_origins_may_call_from_a_browser() {
    let app = "https://app.example";
    let preflight = |url: &str, origin: &str| {
        let request = Client::new().request(Method::OPTIONS, url).header("origin", origin);
        request
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization")
    };
    let allowed = |response: &Response| {
        response.headers().get("access-control-allow-origin").map(|origin| origin.to_str().unwrap().to_owned())
    };
    let closed = serve(&[]).await;
    assert_eq!(allowed(&preflight(&closed.url, app).send().await.unwrap()), None);
    let served = serve_guarded(&["--cors-origins", "https://app.example,http://localhost:6274"]).await;
    let answer = preflight(&served.url, app).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), allowed(&answer).as_deref()), (200, Some(app)));
    assert_eq!(answer.headers()["access-control-allow-headers"], "authorization");
    assert_eq!(allowed(&preflight(&served.url, "https://evil.example").send().await.unwrap()), None);
    let greet = |origin: &'static str| {
        post(&served.url, &hello()).header("authorization", format!("Bearer {ADA}")).header("origin", origin).send()
    };
    let answer = greet(app).await.unwrap();
    assert_eq!((answer.status().as_u16(), allowed(&answer).as_deref()), (200, Some(app)));
    assert!(answer.headers()["access-control-expose-headers"].to_str().unwrap().contains("mcp-session-id"));
    assert_eq!(greet("https://evil.example").await.unwrap().status().as_u16(), 403);
    // A page of a named origin needs a token as any other caller.
    let refused = post(&served.url, &hello()).header("origin", app).send().await.unwrap();
    assert_eq!((refused.status().as_u16(), allowed(&refused).as_deref()), (401, Some(app)));
}

const LONG_ID: usize = 1025;

#[tokio::test(flavor = "multi_thread")]
async fn rejects_long_request_ids_and_progress_tokens() {
    let served = serve(&[]).await;
    let answer = post(&served.url, &hello()).send().await.unwrap();
    let session = answer.headers()["mcp-session-id"].clone();
    let with =
        |method: &str, id: &str, params: Value| json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
    let long = "i".repeat(LONG_ID);
    let token = json!({"name": "list_environments", "arguments": {}, "_meta": {"progressToken": long}});
    let cancelled = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": long}});
    for body in [
        with("tools/list", &long, json!({})),
        with("tools/list", &"i".repeat(10_000_000), json!({})),
        with("tools/call", "1", token),
        cancelled,
        json!([with("tools/list", &long, json!({}))]),
        with("initialize", &long, hello()["params"].clone()),
    ] {
        let answer = post(&served.url, &body).header("mcp-session-id", &session).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 400);
        let error: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        let seen = (&error["id"], &error["error"]["code"], &error["error"]["data"]["code"]);
        assert_eq!(seen, (&Value::Null, &json!(-32600), &json!("id_too_long")));
        assert!(error["error"]["message"].as_str().unwrap().contains("at most 1024 bytes"));
    }
    let fits = with("tools/list", &long[1..], json!({}));
    let answer = post(&served.url, &fits).header("mcp-session-id", &session).send().await.unwrap();
    assert!(answer.text().await.unwrap().contains("list_environments"));
}

#[tokio::test(flavor = "multi_thread")]
async fn rejects_long_request_ids_and_progress_tokens_over_stdio() {
    let served = serve(&[]).await;
    let (ours, theirs) = duplex(64 * 1024);
    let story = async {
        let (input, mut output) = split(ours);
        let mut lines = BufReader::new(input).lines();
        let long = "i".repeat(LONG_ID);
        let mut tokened = call(2, "list_environments", &json!({}));
        tokened["params"]["_meta"] = json!({"progressToken": long});
        let mut named = call(3, "list_environments", &json!({}));
        named["id"] = json!(long);
        let cancelled = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": long}});
        let initialized = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
        for message in [hello(), initialized, tokened, named, cancelled, call(4, "list_environments", &json!({}))] {
            output.write_all(format!("{message}\n").as_bytes()).await.unwrap();
        }
        let mut answers = Vec::new();
        for _ in 0..5 {
            let line = lines.next_line().await.unwrap().unwrap();
            answers.push(serde_json::from_str::<Value>(&line).unwrap());
        }
        let refused: Vec<_> = answers.iter().filter(|answer| answer["error"]["code"] == -32600).collect();
        assert_eq!(refused.len(), 3, "{answers:?}");
        assert!(
            refused.iter().all(|answer| answer["id"].is_null() && answer["error"]["data"]["code"] == "id_too_long")
        );
        assert_eq!(answers.last().unwrap()["id"], 4);
    };
    tokio::join!(served.converse(theirs), story);
}

#[tokio::test(flavor = "multi_thread")]
async fn handler_of_http_serves_no_request_without_a_caller() {
    let served = serve(&[]).await;
    let (ours, theirs) = duplex(64 * 1024);
    let story = async {
        let (input, mut output) = split(ours);
        let mut lines = BufReader::new(input).lines();
        let initialized = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
        for message in [hello(), initialized, call(2, "list_environments", &json!({}))] {
            output.write_all(format!("{message}\n").as_bytes()).await.unwrap();
        }
        lines.next_line().await.unwrap().unwrap();
        let answer: Value = serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
        assert_eq!((&answer["id"], &answer["error"]["data"]["code"]), (&json!(2), &json!("internal")), "{answer}");
    };
    tokio::join!(served.converse_as_http(theirs), story);
}
