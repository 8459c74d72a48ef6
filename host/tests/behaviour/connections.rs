// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Connections of peers that send no complete request, or only requests without a token.

use std::time::Duration;

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, interval, sleep, timeout},
};

use crate::served::{ADA, Served, TIMEOUT, serve_guarded};

const MAX: usize = 64;

fn address(served: &Served) -> &str {
    served.url.trim_start_matches("http://").trim_end_matches("/mcp")
}

async fn connect(served: &Served) -> TcpStream {
    timeout(TIMEOUT, TcpStream::connect(address(served))).await.unwrap().unwrap()
}

/// Sends a GET with these header lines; returns the head of the answer, and reads its body.
async fn get(stream: &mut TcpStream, path: &str, headers: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let read = async {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
        stream.read_exact(&mut body).await.unwrap();
        head
    };
    timeout(TIMEOUT, read).await.unwrap()
}

/// Makes a request with ada's token. It leads to an error, but passes the check of tokens.
async fn get_as_ada(stream: &mut TcpStream) {
    let head = get(stream, "/environments/x/log", &format!("authorization: Bearer {ADA}\r\n")).await;
    assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
}

async fn rest(stream: &mut TcpStream) -> String {
    let mut rest = String::new();
    timeout(TIMEOUT, stream.read_to_string(&mut rest)).await.unwrap().unwrap();
    rest
}

fn code(answer: &str) -> Value {
    let body: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    body["error"]["data"]["code"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_lock_out_no_caller() {
    let served = serve_guarded(&["--max-connections", &MAX.to_string()]).await;
    let mut proven = connect(&served).await;
    get_as_ada(&mut proven).await;
    let mut silent = Vec::new();
    for _ in 0..2 * MAX {
        silent.push(connect(&served).await);
    }
    let refused = rest(&mut silent[0]).await;
    assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
    assert_eq!(code(&refused), "too_many_connections");
    let mut another = connect(&served).await;
    get_as_ada(&mut another).await;
    get_as_ada(&mut proven).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_without_a_token_lock_out_no_caller() {
    let served = serve_guarded(&["--max-connections", &MAX.to_string()]).await;
    let mut proven = connect(&served).await;
    get_as_ada(&mut proven).await;
    let mut held = Vec::new();
    for number in 0..2 * MAX {
        let mut stream = connect(&served).await;
        let (path, status) = if number % 2 == 0 { ("/healthz", "200") } else { ("/mcp", "401") };
        let head = get(&mut stream, path, "").await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        held.push(stream);
    }
    // A connection that has had an answer gets no other one that it has not asked for.
    assert_eq!(rest(&mut held[0]).await, "");
    let mut another = connect(&served).await;
    get_as_ada(&mut another).await;
    get_as_ada(&mut proven).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_with_a_token_keep_their_places() {
    let served = serve_guarded(&["--max-connections", "8"]).await;
    let mut held = Vec::new();
    // The client of `served` has at least one connection.
    let refused = loop {
        let mut stream = connect(&served).await;
        let request = format!("GET /environments/x/log HTTP/1.1\r\nauthorization: Bearer {ADA}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut start = [0; 12];
        stream.read_exact(&mut start).await.unwrap();
        if start.ends_with(b"503") {
            break held.len();
        }
        held.push(stream);
    };
    assert!((1..8).contains(&refused), "{refused}");
    for stream in &mut held {
        // The rest of the first answer comes first.
        get(stream, "/healthz", "").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn first_head_must_arrive_within_ten_seconds() {
    let served = serve_guarded(&[]).await;
    let start = Instant::now();
    let [mut slow, mut silent, mut idle] = [connect(&served).await, connect(&served).await, connect(&served).await];
    get_as_ada(&mut idle).await;
    let (mut reader, mut writer) = slow.split();
    let send = async {
        let mut seconds = interval(Duration::from_secs(1));
        for byte in b"GET /healthz HTTP/1.1\r\nx: ".iter().chain(std::iter::repeat(&b'x')) {
            seconds.tick().await;
            if writer.write_all(&[*byte]).await.is_err() {
                break;
            }
        }
    };
    let mut answer = String::new();
    tokio::select! {
        read = timeout(TIMEOUT, reader.read_to_string(&mut answer)) => { read.unwrap().unwrap(); }
        () = send => {}
    }
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_eq!(code(&answer), "request_too_slow");
    let elapsed = start.elapsed();
    assert!((Duration::from_secs(10)..Duration::from_secs(30)).contains(&elapsed), "{elapsed:?}");
    assert_eq!(code(&rest(&mut silent).await), "request_too_slow");
    // Between requests, clients have more time.
    sleep(Duration::from_secs(2)).await;
    get_as_ada(&mut idle).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn head_has_at_most_64_kib() {
    let served = serve_guarded(&[]).await;
    let mut stream = connect(&served).await;
    let head = get(&mut stream, "/healthz", &format!("x: {}\r\n", "x".repeat(60_000))).await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let mut stream = connect(&served).await;
    let request = format!("GET /healthz HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(400_000));
    stream.write_all(request.as_bytes()).await.unwrap();
    let answer = rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
}
