// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The limits of sessions, calls, connections and bodies, and the errors when they are exceeded.

use std::time::Duration;

use futures_util::future::select_all;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::{
    cancelling::endless,
    raw,
    served::{ADA, BOB, TIMEOUT, call, connect_as, serve, serve_guarded, tokens, until},
};

fn code(body: &str) -> String {
    let body: Value = serde_json::from_str(body).unwrap();
    assert!(body["error"]["message"].is_string() && body["error"]["data"]["hint"].is_string(), "{body}");
    body["error"]["data"]["code"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn rejects_sessions_beyond_the_limit_until_one_closes() {
    // The client of `served` has one session already.
    let served = serve(&["--max-sessions", "2"]).await;
    let (status, _, id) = raw::greet(&served.url, None).await;
    assert_eq!(status, 200);
    let (status, body, _) = raw::greet(&served.url, None).await;
    assert_eq!((status, code(&body).as_str()), (503, "too_many_sessions"));
    let end = reqwest::Client::new().delete(&served.url).header("mcp-session-id", id.unwrap());
    assert!(end.send().await.unwrap().status().is_success());
    assert_eq!(raw::greet(&served.url, None).await.0, 200);
    // This call uses no session, so the limit does not affect the call.
    let answer = raw::stateless_call(&served.url, "list_environments", &json!({}), None).await;
    assert_eq!(answer.status().as_u16(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn rejects_calls_beyond_the_limit_of_their_principal() {
    let served = serve_guarded(&["--max-calls-per-principal", "1"]).await;
    let id = served.create("shell").await;
    let (bob, _) = connect_as(&served.url, Some(BOB)).await;
    let url = served.url.clone();
    let endless = endless(&id, "sleep 1000");
    let running = tokio::spawn(async move {
        // While a list call runs, this execute call is itself rejected, so the loop retries.
        let call = || async { raw::stateless_call_as(&url, Some(ADA), "execute", &endless, None).await.text().await };
        while call().await.unwrap().contains("too_many_calls") {}
    });
    let list = || async { served.raw("list_environments", json!({})).await.unwrap() };
    let refused = async {
        loop {
            let result = list().await;
            if result.is_error == Some(true) {
                break result.meta.unwrap().0["waggle/error"]["code"].take();
            }
        }
    };
    assert_eq!(timeout(TIMEOUT, refused).await.unwrap(), "too_many_calls");
    assert_eq!(call(&bob, "list_environments", json!({})).await.unwrap().is_error, Some(false));
    running.abort();
    until("another call is accepted", async || list().await.is_error == Some(false)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_beyond_the_limit_gets_an_error_and_is_closed() {
    let served = serve(&["--max-connections", "8"]).await;
    let address = served.url.trim_start_matches("http://").trim_end_matches("/mcp").to_owned();
    let mut held = Vec::new();
    for _ in 0..9 {
        held.push(TcpStream::connect(&address).await.unwrap());
    }
    // Connections within the limit get no answer before they send a request.
    let answers = held.iter_mut().map(|stream| {
        Box::pin(async {
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        })
    });
    let (answer, ..) = timeout(TIMEOUT, select_all(answers)).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert_eq!(code(body), "too_many_connections");
    drop(held);
    // The server notices the closed connections a little later.
    let health = async || reqwest::get(served.url.replace("/mcp", "/healthz")).await;
    until("another connection is accepted", async || health().await.is_ok_and(|answer| answer.status().is_success()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rejects_invalid_and_oversized_bodies() {
    let served = serve(&[]).await;
    let post = |body: String| {
        let request = reqwest::Client::new().post(&served.url).header("content-type", "application/json");
        request.header("accept", "application/json, text/event-stream").body(body).send()
    };
    for (body, status, number, expected) in [
        (String::new(), 400, -32700, "not_a_message"),
        ("{\"jsonrpc\":".to_owned(), 400, -32700, "not_a_message"),
        ("[]".to_owned(), 400, -32600, "not_a_message"),
        ("{\"id\": 1}".to_owned(), 400, -32600, "not_a_message"),
        ("x".repeat(16 * 1024 * 1024 + 1), 413, -32000, "request_too_large"),
    ] {
        let shown: String = body.chars().take(20).collect();
        let answer = post(body).await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{shown}");
        let text = answer.text().await.unwrap();
        assert_eq!(code(&text), expected, "{shown}");
        let error: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&error["id"], &error["error"]["code"]), (&Value::Null, &json!(number)), "{shown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_a_request_sent_in_pieces() {
    let served = serve(&[]).await;
    let address = served.url.trim_start_matches("http://").trim_end_matches("/mcp").to_owned();
    let mut stream = TcpStream::connect(&address).await.unwrap();
    for piece in ["GET /hea", "lthz HTTP/1.1\r\nho", "st: x\r\nconnection: close\r\n\r\n"] {
        stream.write_all(piece.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
    }
    let mut answer = String::new();
    timeout(TIMEOUT, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("{\"status\":\"ok\"}"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn body_memory_is_held_until_the_call_ends() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    let session = raw::Session::start(&served.url).await;
    // Half of the memory for bodies is enough for twelve calls with the maximum standard input.
    let mut call = endless(&id, "sleep 1000");
    call["stdin"] = json!("x".repeat(10_485_760));
    for number in 0..12 {
        let begun = session.call(10 + number, "execute", &call, Some(&number.to_string())).await;
        assert_eq!(begun.status().as_u16(), 200);
    }
    let large = json!({"environment_id": id, "path": "x", "content": "x".repeat(10_000_000)});
    let refused = raw::stateless_call(&served.url, "write_file", &large, None).await;
    assert_eq!((refused.status().as_u16(), code(&refused.text().await.unwrap()).as_str()), (408, "request_too_slow"));
    served.call("destroy_environment", json!({"environment_id": id})).await;
    let id = served.create("shell").await;
    let large = json!({"environment_id": id, "path": "x", "content": "x".repeat(10_000_000)});
    let written = raw::stateless_call(&served.url, "write_file", &large, None).await;
    assert_eq!(written.status().as_u16(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn unread_results_block_only_their_caller() {
    let served = serve_guarded(&[]).await;
    let id = served.create("shell").await;
    served.call("execute", json!({"environment_id": id, "code": "head -c 700000 /dev/zero | tr '\\0' x >large"})).await;
    let read = json!({"environment_id": id, "path": "large", "limit": 700_000});
    let whole = || raw::stateless_call_as(&served.url, Some(ADA), "read_file", &read, None);
    // One caller gets half of 64 MiB, and a reserve of 1 MiB.
    let mut unread = Vec::new();
    for _ in 0..60 {
        unread.push(raw::unread_call_as(&served.url, ADA, "read_file", &read).await);
    }
    let last = whole();
    tokio::pin!(last);
    assert!(timeout(Duration::from_secs(1), &mut last).await.is_err());
    let (bob, _) = connect_as(&served.url, Some(BOB)).await;
    let made = call(&bob, "create_environment", json!({"language": "shell"})).await.unwrap();
    let own = made.structured_content.unwrap()["environment_id"].take();
    let ran = call(&bob, "execute", json!({"environment_id": own, "code": "echo mine"})).await.unwrap();
    assert_eq!(ran.structured_content.unwrap()["stdout"], "mine\n");
    drop(unread);
    assert_eq!(timeout(TIMEOUT, last).await.unwrap().status().as_u16(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_wait_for_their_environment_reserve_no_memory_for_results() {
    let served = serve_guarded(&[]).await;
    let (busy, free) = (served.create("shell").await, served.create("shell").await);
    let mut unread = Vec::new();
    let wait = json!({"environment_id": busy, "code": "sleep 60", "timeout_seconds": 60});
    for _ in 0..32 {
        unread.push(raw::unread_call_as(&served.url, ADA, "execute", &wait).await);
    }
    sleep(Duration::from_secs(2)).await;
    for tool in ["list_files", "read_file"] {
        for _ in 0..20 {
            let waits = json!({"environment_id": busy, "path": "/etc/passwd"});
            unread.push(raw::unread_call_as(&served.url, ADA, tool, &waits).await);
        }
    }
    sleep(Duration::from_secs(1)).await;
    let list = served.call("list_files", json!({"environment_id": free}));
    assert_eq!(timeout(Duration::from_secs(20), list).await.unwrap()["count"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn rejects_a_repeated_request_id_or_progress_token() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    let session = raw::Session::start(&served.url).await;
    let waits = json!({"environment_id": id, "code": "read line <gate", "timeout_seconds": 60});
    served.call("execute", json!({"environment_id": id, "code": "mkfifo gate"})).await;
    let first = session.call(7, "execute", &waits, Some("one")).await;
    for (number, token) in [(7, "two"), (8, "one")] {
        let refused = session.call(number, "list_environments", &json!({}), Some(token)).await;
        assert_eq!(refused.status().as_u16(), 400);
        assert_eq!(code(&refused.text().await.unwrap()), "request_repeated");
    }
    served.call("execute", json!({"environment_id": id, "code": "echo >gate"})).await;
    assert!(first.text().await.unwrap().contains("\\\"exit_code\\\":0"));
    let again = session.call(7, "list_environments", &json!({}), Some("one")).await;
    assert_eq!(again.status().as_u16(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn environments_of_one_caller_leave_room_for_another() {
    let served = serve_guarded(&["--max-environments", "4"]).await;
    let (bob, _) = connect_as(&served.url, Some(BOB)).await;
    let shell = json!({"language": "shell"});
    let created = |client| {
        let shell = shell.clone();
        async move {
            let all = futures_util::future::join_all((0..8).map(|_| call(client, "create_environment", shell.clone())));
            all.await.into_iter().map(|result| {
                let mut result = result.unwrap();
                result.meta.as_mut().and_then(|meta| meta.0.get_mut("waggle/error").map(Value::take))
            })
        }
    };
    for client in [&served.client, &bob] {
        let outcomes: Vec<_> = created(client).await.collect();
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_none()).count(), 2, "{outcomes:?}");
        for refused in outcomes.iter().flatten() {
            assert_eq!(refused["code"], "caller_capacity_reached");
            let message = refused["message"].as_str().unwrap();
            assert!(message.contains("your own maximum of 2 environments, of 4 for all callers"), "{message}");
        }
    }
    // With one name in the token file, a caller may use everything that is left.
    let mut ids = Vec::new();
    for environment in served.call("list_environments", json!({})).await["environments"].as_array().unwrap() {
        ids.push(environment["environment_id"].clone());
    }
    served.tokens.send_replace(tokens(&format!("bob {BOB}")));
    let again: Vec<_> = created(&bob).await.collect();
    assert!(again.iter().flatten().all(|refused| refused["code"] == "capacity_reached"), "{again:?}");
    served.tokens.send_replace(tokens(&format!("ada {ADA}\nbob {BOB}")));
    served.call("destroy_environment", json!({"environment_id": ids[0]})).await;
    served.tokens.send_replace(tokens(&format!("bob {BOB}")));
    assert_eq!(created(&bob).await.filter(Option::is_none).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn operator_can_set_the_environments_of_each_caller() {
    let served = serve_guarded(&["--max-environments", "4", "--max-environments-per-principal", "3"]).await;
    for _ in 0..3 {
        served.create("shell").await;
    }
    let (message, code) = served.refused("create_environment", json!({"language": "shell"})).await;
    assert_eq!(code, "caller_capacity_reached");
    assert!(message.contains("maximum of 3 environments"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_one_caller_leave_room_for_another() {
    // The client of `served` has one session of ada's already.
    let served = serve_guarded(&["--max-sessions", "4"]).await;
    let open = async |who: &'static str| raw::greet(&served.url, Some(who)).await;
    let opened = futures_util::future::join_all((0..8).map(|_| open(ADA))).await;
    assert_eq!(opened.iter().filter(|(status, ..)| *status == 200).count(), 1);
    for (_, body, _) in opened.iter().filter(|(status, ..)| *status != 200) {
        assert_eq!(code(body), "too_many_caller_sessions");
    }
    assert_eq!((open(BOB).await.0, open(BOB).await.0, open(BOB).await.0), (200, 200, 503));
}
