// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What a tool call costs over bare axum and over bare rmcp, in both dialects, at one client and at 32.
//!
//! `cargo bench -p waggle --bench overhead [-- --quick]` prints a table. Server and clients share a process and its
//! processors; the tool is the cheapest that there is on either side, so what is left is the way there and back.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    reason = "a measurement ends where its preparation fails; it prints, and counts far below 2^52"
)]

#[path = "../../tests/behaviour/machines.rs"]
mod machines;

use std::{
    ffi::OsString,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Json, Router, routing::post};
use reqwest::{Client, RequestBuilder};
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{CallToolRequestParams, CallToolResponse, CallToolResult, ServerCapabilities, ServerConfig},
    service::RequestContext,
    transport::streamable_http_server::{
        StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
    },
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};
use waggle::{
    cli::{self, Command},
    domain::{image::ImageRef, runtime::ByRuntime},
    server::Waggle,
};

use crate::machines::InProcess;

const TOOL: &str = "list_environments";
const SESSION_VERSION: &str = "2025-11-25";
const STATELESS_VERSION: &str = "2026-07-28";

/// Answers every call with what `list_environments` says on an empty server.
#[derive(Clone)]
struct Bare;

fn nothing() -> Value {
    json!({"count": 0, "environments": []})
}

impl ServerHandler for Bare {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }

    async fn call_tool(
        &self,
        _request: CallToolRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        Ok(CallToolResponse::Complete(CallToolResult::structured(nothing())))
    }
}

/// How requests are made.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Dialect {
    Plain,
    Session,
    Stateless,
}

/// A client with a connection, and a session where the dialect has them, of its own.
struct Caller {
    http: Client,
    url: String,
    dialect: Dialect,
    session: Option<String>,
}

impl Caller {
    async fn connect(url: &str, dialect: Dialect) -> Self {
        let mut caller = Self { http: Client::new(), url: url.to_owned(), dialect, session: None };
        if dialect == Dialect::Session {
            let about = json!({"name": "overhead", "version": "1"});
            let params = json!({"protocolVersion": SESSION_VERSION, "capabilities": {}, "clientInfo": about});
            let answer = caller.post(&json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}));
            let answer = answer.send().await.unwrap();
            caller.session = Some(answer.headers()["mcp-session-id"].to_str().unwrap().to_owned());
            answer.text().await.unwrap();
            let ready = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
            caller.post(&ready).send().await.unwrap();
        }
        caller
    }

    fn post(&self, body: &Value) -> RequestBuilder {
        let request = self.http.post(&self.url).header("content-type", "application/json").body(body.to_string());
        let request = request.header("accept", "application/json, text/event-stream");
        match (self.dialect, &self.session) {
            (Dialect::Session, Some(session)) => {
                request.header("mcp-session-id", session).header("mcp-protocol-version", SESSION_VERSION)
            }
            (Dialect::Stateless, _) => {
                let request = request.header("mcp-protocol-version", STATELESS_VERSION);
                request.header("mcp-method", "tools/call").header("mcp-name", TOOL)
            }
            (Dialect::Plain | Dialect::Session, _) => request,
        }
    }

    async fn call(&self) -> Duration {
        let meta = match self.dialect {
            Dialect::Stateless => json!({
                "io.modelcontextprotocol/protocolVersion": STATELESS_VERSION,
                "io.modelcontextprotocol/clientCapabilities": {},
            }),
            Dialect::Plain | Dialect::Session => json!({}),
        };
        let params = json!({"name": TOOL, "arguments": {}, "_meta": meta});
        let request = self.post(&json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}));
        let start = Instant::now();
        let text = request.send().await.unwrap().text().await.unwrap();
        let time = start.elapsed();
        assert!(text.contains("\"count\":0"), "{text}");
        time
    }
}

async fn measure(name: &str, url: &str, dialect: Dialect, seconds: f64) {
    for clients in [1, 32] {
        let mut running = JoinSet::new();
        let start = Instant::now();
        let until = start + Duration::from_secs_f64(seconds);
        for _ in 0..clients {
            let caller = Caller::connect(url, dialect).await;
            running.spawn(async move {
                let mut times = Vec::new();
                while Instant::now() < until {
                    times.push(caller.call().await);
                }
                times
            });
        }
        let mut times: Vec<Duration> = running.join_all().await.into_iter().flatten().collect();
        times.sort_unstable();
        let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)].as_secs_f64() * 1000.0;
        let rate = times.len() as f64 / start.elapsed().as_secs_f64();
        println!("| {name} | {clients} | {:.2} | {:.2} | {rate:.0} |", at(50), at(99));
    }
}

async fn serve(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    tokio::spawn(async move {
        use axum::serve::ListenerExt as _;
        let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap());
        axum::serve(listener, router).await.unwrap();
    });
    url
}

async fn serve_waggle() -> (Waggle, String) {
    let words = ["waggle", "serve"].map(OsString::from);
    let Command::Serve(settings) = cli::parse(words, &|_| None).unwrap().command else { panic!("serve was asked for") };
    let image = || "oci:/in-process".parse::<ImageRef>().unwrap();
    let images = ByRuntime { python: image(), node: image(), shell: image() };
    let mut waggle = Waggle::start(&settings, images, Arc::new(InProcess::default()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = waggle.listen(listener, None, Vec::new()).unwrap();
    (waggle, format!("http://{address}/mcp"))
}

#[tokio::main]
async fn main() {
    // Clients of registries need one, and these are built like them.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let seconds = if std::env::args().any(|word| word == "--quick") { 0.3 } else { 5.0 };
    let echo = |Json(_): Json<Value>| async { Json(json!({"result": {"structuredContent": nothing()}})) };
    let axum = serve(Router::new().route("/mcp", post(echo))).await;
    let config = StreamableHttpServerConfig::default().with_json_response(true);
    let bare = StreamableHttpService::new(|| Ok(Bare), Arc::new(LocalSessionManager::default()), config);
    let rmcp = serve(Router::new().route_service("/mcp", bare)).await;
    let (waggle, ours) = serve_waggle().await;
    println!("| server | clients | p50 ms | p99 ms | calls/s |\n| --- | --- | --- | --- | --- |");
    measure("bare axum", &axum, Dialect::Plain, seconds).await;
    for (name, dialect) in [("sessions", Dialect::Session), ("stateless", Dialect::Stateless)] {
        measure(&format!("bare rmcp, {name}"), &rmcp, dialect, seconds).await;
        measure(&format!("waggle, {name}"), &ours, dialect, seconds).await;
    }
    waggle.shut_down().await;
}
