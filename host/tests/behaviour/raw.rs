// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Clients that send raw HTTP requests. Unlike client libraries, they can disconnect early or not read an answer.

use reqwest::{Client, RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpSocket, TcpStream},
};

const SESSION_VERSION: &str = "2025-11-25";
const STATELESS_VERSION: &str = "2026-07-28";
const SESSION_HEADER: &str = "mcp-session-id";

/// Opens a session. Returns the status of the answer, its body, and the id of the session.
pub(crate) async fn greet(url: &str, token: Option<&str>) -> (u16, String, Option<String>) {
    let answer = authorized(post(url, SESSION_VERSION, &hello()), token).send().await.unwrap();
    let id = answer.headers().get(SESSION_HEADER).map(|id| id.to_str().unwrap().to_owned());
    (answer.status().as_u16(), answer.text().await.unwrap(), id)
}

/// Lists the tools in a session, and returns the status and the body of the answer.
pub(crate) async fn list_in(url: &str, token: Option<&str>, session: &str) -> (u16, String) {
    let body = json!({"jsonrpc": "2.0", "id": 2, "method": "tools/list", "params": {}});
    let request = post(url, SESSION_VERSION, &body).header(SESSION_HEADER, session);
    let answer = authorized(request, token).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

fn authorized(request: RequestBuilder, token: Option<&str>) -> RequestBuilder {
    match token {
        Some(token) => request.header("authorization", format!("Bearer {token}")),
        None => request,
    }
}

fn hello() -> Value {
    let about = json!({"name": "raw", "version": "1"});
    let params = json!({"protocolVersion": SESSION_VERSION, "capabilities": {}, "clientInfo": about});
    json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params})
}

fn post(url: &str, version: &str, body: &Value) -> RequestBuilder {
    let request = Client::new().post(url).header("content-type", "application/json");
    let request = request.header("accept", "application/json, text/event-stream");
    request.header("mcp-protocol-version", version).body(body.to_string())
}

fn tool_call(id: u32, tool: &str, arguments: &Value, meta: &Value) -> Value {
    let params = json!({"name": tool, "arguments": arguments, "_meta": meta});
    json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params})
}

/// A client with an MCP session.
pub(crate) struct Session {
    url: String,
    id: String,
}

impl Session {
    pub(crate) async fn start(url: &str) -> Self {
        let answer = post(url, SESSION_VERSION, &hello()).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 200);
        let id = answer.headers()[SESSION_HEADER].to_str().unwrap().to_owned();
        answer.text().await.unwrap();
        let session = Self { url: url.to_owned(), id };
        session.notify("notifications/initialized", json!({})).await;
        session
    }

    async fn notify(&self, method: &str, params: Value) {
        let note = json!({"jsonrpc": "2.0", "method": method, "params": params});
        let answer = post(&self.url, SESSION_VERSION, &note).header(SESSION_HEADER, &self.id).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 202);
    }

    /// Calls a tool, and returns when the answer begins, before its body is read. With a progress token the body is a
    /// stream.
    pub(crate) async fn call(&self, id: u32, tool: &str, arguments: &Value, token: Option<&str>) -> Response {
        self.begin(id, tool, arguments, token).await
    }

    /// Like [`Self::call`], but the future borrows nothing.
    pub(crate) fn begin(
        &self,
        id: u32,
        tool: &str,
        arguments: &Value,
        token: Option<&str>,
    ) -> impl Future<Output = Response> + Send + use<> {
        let meta = token.map_or_else(|| json!({}), |token| json!({"progressToken": token}));
        let call = post(&self.url, SESSION_VERSION, &tool_call(id, tool, arguments, &meta));
        let sent = call.header(SESSION_HEADER, &self.id).send();
        async move { sent.await.unwrap() }
    }

    /// Calls a tool without reading the answer, with the smallest receive buffer that the system allows.
    pub(crate) async fn call_unread(&self, id: u32, tool: &str, arguments: &Value, token: &str) -> TcpStream {
        let body = tool_call(id, tool, arguments, &json!({"progressToken": token})).to_string();
        let headers = format!("mcp-protocol-version: {SESSION_VERSION}\r\n{SESSION_HEADER}: {}", self.id);
        send_unread(&self.url, &headers, &body).await
    }

    pub(crate) async fn cancel(&self, id: u32) {
        self.notify("notifications/cancelled", json!({"requestId": id})).await;
    }

    /// Returns what is left of an answer after the event with this id.
    pub(crate) async fn resume(&self, event_id: &str) -> String {
        let get = Client::new().get(&self.url).header(SESSION_HEADER, &self.id).header("accept", "text/event-stream");
        let get = get.header("mcp-protocol-version", SESSION_VERSION).header("last-event-id", event_id);
        get.send().await.unwrap().text().await.unwrap()
    }

    pub(crate) async fn delete(&self) {
        let delete = Client::new().delete(&self.url).header(SESSION_HEADER, &self.id);
        let answer = delete.header("mcp-protocol-version", SESSION_VERSION).send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.status());
    }
}

/// Calls a tool without a session, with a bearer token, and does not read the answer.
pub(crate) async fn unread_call_as(url: &str, who: &str, tool: &str, arguments: &Value) -> TcpStream {
    let body = tool_call(1, tool, arguments, &stateless_meta(&json!({}))).to_string();
    let headers = format!(
        "mcp-protocol-version: {STATELESS_VERSION}\r\nmcp-method: tools/call\r\nmcp-name: {tool}\r\n\
         authorization: Bearer {who}"
    );
    send_unread(url, &headers, &body).await
}

/// Sends a request over a connection with the smallest receive buffer that the system allows.
async fn send_unread(url: &str, headers: &str, body: &str) -> TcpStream {
    let host = url.trim_start_matches("http://").trim_end_matches("/mcp");
    let head = format!(
        "POST /mcp HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\naccept: application/json, \
         text/event-stream\r\n{headers}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(1).unwrap();
    let mut stream = socket.connect(host.parse().unwrap()).await.unwrap();
    stream.write_all((head + body).as_bytes()).await.unwrap();
    stream
}

/// Calls a tool without a session. Dropping the future, or the answer, closes the connection.
pub(crate) async fn stateless_call(url: &str, tool: &str, arguments: &Value, token: Option<&str>) -> Response {
    stateless_call_as(url, None, tool, arguments, token).await
}

/// Like [`stateless_call`], with a bearer token.
pub(crate) async fn stateless_call_as(
    url: &str,
    who: Option<&str>,
    tool: &str,
    arguments: &Value,
    token: Option<&str>,
) -> Response {
    let mut meta = stateless_meta(&json!({}));
    if let Some(token) = token {
        meta["progressToken"] = json!(token);
    }
    authorized(stateless(url, tool, arguments, &meta), who).send().await.unwrap()
}

/// Like [`stateless_call`], from a client with these capabilities.
pub(crate) async fn stateless_call_of(url: &str, capabilities: &Value, tool: &str, arguments: &Value) -> Response {
    stateless(url, tool, arguments, &stateless_meta(capabilities)).send().await.unwrap()
}

fn stateless_meta(capabilities: &Value) -> Value {
    json!({
        "io.modelcontextprotocol/protocolVersion": STATELESS_VERSION,
        "io.modelcontextprotocol/clientCapabilities": capabilities,
        "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "1"},
    })
}

fn stateless(url: &str, tool: &str, arguments: &Value, meta: &Value) -> RequestBuilder {
    let call = post(url, STATELESS_VERSION, &tool_call(1, tool, arguments, meta));
    call.header("mcp-method", "tools/call").header("mcp-name", tool)
}
