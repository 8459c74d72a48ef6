// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! A minimal client: one request and one response at a time, over a connection that stays open.

use std::time::{Duration, Instant};

use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};

const SESSION_VERSION: &str = "2025-11-25";
const STATELESS_VERSION: &str = "2026-07-28";

/// The protocol of the requests: JSON without MCP, or a version of MCP with or without sessions.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Protocol {
    Plain,
    Session,
    Stateless,
}

impl Protocol {
    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Session => SESSION_VERSION,
            Self::Stateless => STATELESS_VERSION,
        }
    }
}

/// A client with its own connection, and its own session if the protocol version has sessions.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    http: Client,
    url: String,
    protocol: Protocol,
    session: Option<String>,
}

impl Caller {
    pub(crate) async fn connect(url: &str, protocol: Protocol) -> Self {
        let mut caller = Self { http: Client::new(), url: url.to_owned(), protocol, session: None };
        if protocol == Protocol::Session {
            let about = json!({"name": "overhead", "version": "1"});
            let params = json!({"protocolVersion": SESSION_VERSION, "capabilities": {}, "clientInfo": about});
            let hello = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params});
            let answer = caller.post("", &hello).send().await.unwrap();
            caller.session = Some(answer.headers()["mcp-session-id"].to_str().unwrap().to_owned());
            answer.text().await.unwrap();
            let ready = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
            caller.post("", &ready).send().await.unwrap();
        }
        caller
    }

    fn post(&self, tool: &str, body: &Value) -> RequestBuilder {
        let request = self.http.post(&self.url).header("content-type", "application/json").body(body.to_string());
        let request = request.header("accept", "application/json, text/event-stream");
        match (self.protocol, &self.session) {
            (Protocol::Session, Some(session)) => {
                request.header("mcp-session-id", session).header("mcp-protocol-version", SESSION_VERSION)
            }
            (Protocol::Stateless, _) => {
                let request = request.header("mcp-protocol-version", STATELESS_VERSION);
                request.header("mcp-method", "tools/call").header("mcp-name", tool)
            }
            (Protocol::Plain | Protocol::Session, _) => request,
        }
    }

    /// Calls a tool. Returns the duration of the call, and the body of the response.
    pub(crate) async fn call(&self, tool: &str, arguments: &Value) -> (Duration, String) {
        let meta = match self.protocol {
            Protocol::Stateless => json!({
                "io.modelcontextprotocol/protocolVersion": STATELESS_VERSION,
                "io.modelcontextprotocol/clientCapabilities": {},
            }),
            Protocol::Plain | Protocol::Session => json!({}),
        };
        let params = json!({"name": tool, "arguments": arguments, "_meta": meta});
        let request = self.post(tool, &json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}));
        let start = Instant::now();
        let text = request.send().await.unwrap().text().await.unwrap();
        (start.elapsed(), text)
    }
}
