// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Requests to a running server: a stateless MCP call, or a GET of a page next to the endpoint.

use std::{fmt, str::FromStr, time::Duration};

use clap::Args;
use reqwest::{Client, RequestBuilder, Response, Url};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};

use crate::config::{SecretParser, process_variable};

/// The protocol version. In this version a call needs no session.
const PROTOCOL: &str = "2026-07-28";
/// Maximum size of a response in bytes. The largest responses contain the two outputs of a command, or a list of
/// environments.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The server of a command, and the form of its output.
#[derive(Args, Clone, Debug)]
pub struct ServerArguments {
    /// The server's endpoint; if the server requires a bearer token, the variable WAGGLE_TOKEN must hold it
    #[arg(
        long,
        default_value = "http://127.0.0.1:8080/mcp",
        value_parser = SecretParser::<ServerUrl>::NEW,
        value_name = "URL"
    )]
    pub url: ServerUrl,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// A server's URL. `Display` omits the user and the password.
#[derive(Clone, Debug)]
pub struct ServerUrl {
    whole: SecretString,
    shown: String,
}

impl FromStr for ServerUrl {
    type Err = ServerUrlFault;

    fn from_str(text: &str) -> Result<Self, ServerUrlFault> {
        let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let mut shown = url.ok_or(ServerUrlFault)?;
        shown.set_username("").and(shown.set_password(None)).map_err(|()| ServerUrlFault)?;
        Ok(Self { whole: text.into(), shown: shown.into() })
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// An invalid URL of a server. The error does not repeat the URL, since the URL may contain a password.
#[derive(Debug, thiserror::Error)]
#[error("must be a URL such as http://127.0.0.1:8080/mcp")]
pub struct ServerUrlFault;

/// A request to a server failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum RemoteFault {
    #[error("failed to reach {url}; start `waggle serve` there, or name another server with --url")]
    Reach { url: String, source: reqwest::Error },
    #[error("{url} rejected the token; set WAGGLE_TOKEN")]
    Token { url: String },
    #[error("the server at {url} rejects this host name; add it to WAGGLE_ALLOWED_HOSTS there")]
    Name { url: String },
    #[error("{url} must end in /mcp")]
    Endpoint { url: String },
    #[error("{url} responded with HTTP status {status}")]
    Status { url: String, status: u16 },
    #[error("{url} did not respond like an MCP server")]
    Answer { url: String },
    #[error("{message}")]
    Refused { code: String, message: String },
}

/// Calls a tool and returns its structured result.
pub(super) async fn call(
    server: &ServerArguments,
    tool: &str,
    arguments: Value,
    timeout: Duration,
) -> Result<Value, RemoteFault> {
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": PROTOCOL,
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": "waggle", "version": env!("CARGO_PKG_VERSION")},
    });
    let params = json!({"name": tool, "arguments": arguments, "_meta": meta});
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params});
    let request =
        client(server, timeout)?.post(server.url.whole.expose_secret()).header("content-type", "application/json");
    let request = request.header("accept", "application/json, text/event-stream");
    let request = request.header("mcp-protocol-version", PROTOCOL).header("mcp-method", "tools/call");
    let mut answer = send(server, request.header("mcp-name", tool).body(body.to_string())).await?;
    let status = answer.status();
    let bytes = read(server, &mut answer).await?;
    match (status.is_success(), result(&bytes)) {
        (true, Some(outcome)) => outcome,
        (true, None) => Err(RemoteFault::Answer { url: server.url.to_string() }),
        (false, Some(Err(refused))) => Err(refused),
        (false, Some(Ok(_)) | None) => {
            Err(RemoteFault::Status { url: server.url.to_string(), status: status.as_u16() })
        }
    }
}

/// Requests a page next to the endpoint and returns its JSON.
pub(super) async fn get(server: &ServerArguments, page: &str, timeout: Duration) -> Result<Value, RemoteFault> {
    let url = || server.url.to_string();
    let Some(base) = server.url.whole.expose_secret().trim_end_matches('/').strip_suffix("/mcp") else {
        return Err(RemoteFault::Endpoint { url: url() });
    };
    let mut answer = send(server, client(server, timeout)?.get(format!("{base}/{page}"))).await?;
    let status = answer.status();
    let body: Option<Value> = serde_json::from_slice(&read(server, &mut answer).await?).ok();
    let field = |key| body.as_ref().and_then(|body| body.pointer(key)).and_then(Value::as_str).map(str::to_owned);
    match (status.is_success(), field("/error/code"), field("/error/message")) {
        (true, ..) => body.ok_or_else(|| RemoteFault::Answer { url: url() }),
        (false, code, Some(message)) => Err(RemoteFault::Refused { code: code.unwrap_or_default(), message }),
        (false, _, None) => Err(RemoteFault::Status { url: url(), status: status.as_u16() }),
    }
}

fn client(server: &ServerArguments, timeout: Duration) -> Result<Client, RemoteFault> {
    // The call fails only if this provider is already installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::builder().no_proxy().timeout(timeout).build();
    client.map_err(|source| RemoteFault::Reach { url: server.url.to_string(), source })
}

/// Sends a request, with the token in WAGGLE_TOKEN if that variable is set.
async fn send(server: &ServerArguments, mut request: RequestBuilder) -> Result<Response, RemoteFault> {
    let token = process_variable("WAGGLE_TOKEN").and_then(|token| token.into_string().ok());
    if let Some(token) = token.map(SecretString::from) {
        request = request.bearer_auth(token.expose_secret());
    }
    let url = || server.url.to_string();
    let answer = request.send().await.map_err(|source| RemoteFault::Reach { url: url(), source })?;
    match answer.status().as_u16() {
        401 => Err(RemoteFault::Token { url: url() }),
        403 => Err(RemoteFault::Name { url: url() }),
        _ => Ok(answer),
    }
}

async fn read(server: &ServerArguments, answer: &mut Response) -> Result<Vec<u8>, RemoteFault> {
    let url = || server.url.to_string();
    let mut bytes = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(|source| RemoteFault::Reach { url: url(), source })? {
        if bytes.len() + piece.len() > ANSWER_BYTES_MAX {
            return Err(RemoteFault::Answer { url: url() });
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// Parses the response to a call; returns `None` if the response is invalid.
fn result(bytes: &[u8]) -> Option<Result<Value, RemoteFault>> {
    let answer: Value = serde_json::from_slice(bytes).ok()?;
    if let Some(fault) = answer.pointer("/error/message").and_then(Value::as_str) {
        return Some(Err(RemoteFault::Refused { code: String::new(), message: fault.to_owned() }));
    }
    let result = answer.get("result")?;
    if result.get("isError").and_then(Value::as_bool) == Some(true) {
        let text = result.pointer("/content/0/text").and_then(Value::as_str)?;
        let field = |key: &str| result.pointer(key).and_then(Value::as_str).unwrap_or_default();
        // The hint is advice for a model that calls the tool itself.
        let hint = field("/_meta/waggle~1error/hint");
        let message = if hint.is_empty() { text.to_owned() } else { text.replacen(&format!("\n{hint}"), "", 1) };
        return Some(Err(RemoteFault::Refused { code: field("/_meta/waggle~1error/code").to_owned(), message }));
    }
    result.get("structuredContent").cloned().map(Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_is_a_result_a_refusal_or_invalid() {
        let parsed = |text: &str| match result(text.as_bytes()) {
            None => "none".to_owned(),
            Some(Ok(value)) => value.to_string(),
            Some(Err(fault)) => fault.to_string(),
        };
        assert_eq!(parsed(r#"{"result":{"structuredContent":{"count":0}}}"#), r#"{"count":0}"#);
        assert_eq!(parsed(r#"{"result":{"isError":true,"content":[{"text":"no such"}]}}"#), "no such");
        let refused = r#"{"result":{"isError":true,"content":[{"text":"late\nWait.\nstdout: a"}],
            "_meta":{"waggle/error":{"code":"timed_out","hint":"Wait."}}}}"#;
        let Some(Err(RemoteFault::Refused { code, message })) = result(refused.replace('\n', "").as_bytes()) else {
            panic!("{refused}")
        };
        assert_eq!((code.as_str(), message.as_str()), ("timed_out", "late\nstdout: a"));
        assert_eq!(parsed(r#"{"error":{"code":-32603,"message":"failed"}}"#), "failed");
        for nonsense in ["", "<html>", "{}", r#"{"result":{}}"#] {
            assert_eq!(parsed(nonsense), "none");
        }
    }

    #[test]
    fn displayed_url_has_no_credentials() {
        for (text, expected) in [
            ("http://127.0.0.1:8080/mcp", "http://127.0.0.1:8080/mcp"),
            ("https://bee:honey@waggle.example/mcp", "https://waggle.example/mcp"),
        ] {
            let url: ServerUrl = text.parse().unwrap();
            assert_eq!((url.to_string().as_str(), url.whole.expose_secret()), (expected, text));
            assert!(!format!("{url:#?}").contains("honey"), "{url:?}");
        }
        for text in ["bee:honey@waggle.example/mcp", "//bee:honey@h/mcp", "http://bee:honey@h:x/mcp", "", "http://"] {
            assert!(text.parse::<ServerUrl>().is_err(), "{text}");
        }
    }
}
