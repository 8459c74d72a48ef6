// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The commands that talk to a running server: one stateless MCP call each, over HTTP.

use std::{
    error::Error,
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use serde_json::{Value, json};

use crate::{config::process_variable, error_code::ErrorCode};

/// The dialect in which a call needs no session.
const PROTOCOL: &str = "2026-07-28";
/// A server's answer holds at most two outputs' windows, or a list of environments; more is none of its.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// For the server's part of a call, above the command's own time.
const ANSWER_MARGIN: Duration = Duration::from_secs(60);
/// Of the answer to a call that runs nothing.
const QUICK_SECONDS: u64 = 30;
/// What a shell says of a command that was killed for its time.
const TIMED_OUT: u8 = 124;

/// Which server.
#[derive(Args, Clone, Debug)]
#[command(after_help = "A server that wants a token takes it from the variable WAGGLE_TOKEN.")]
pub struct ServerArguments {
    /// The server's endpoint
    #[arg(long, default_value = "http://127.0.0.1:8080/mcp", value_name = "URL")]
    pub url: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What to run where.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  waggle exec 123e4567-e89b-42d3-a456-426614174000 -- ls -l
  waggle exec $ID --timeout 120 -- sh -c 'make && ./test'

The exit code is the command's; 124 means that its time was over, 1 that it did not run.")]
pub struct ExecArguments {
    /// The environment, as `waggle ps` lists it
    pub environment_id: String,
    /// The command, with its arguments
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
    /// Seconds that it may take
    #[arg(long, default_value_t = QUICK_SECONDS, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout: u64,
    /// Which server.
    #[command(flatten)]
    pub server: ServerArguments,
}

/// A server did not do what it was asked.
#[derive(Debug, thiserror::Error)]
enum RemoteFault {
    #[error("failed to reach {url}; is `waggle serve` running there? --url names another server")]
    Reach { url: String, source: reqwest::Error },
    #[error("{url} wants a token, or another one: WAGGLE_TOKEN holds it")]
    Token { url: String },
    #[error("{url} answered with HTTP status {status}")]
    Status { url: String, status: u16 },
    #[error("{url} did not answer as an MCP server does")]
    Answer { url: String },
    #[error("{message}")]
    Refused { code: String, message: String },
}

/// Lists environments.
///
/// # Errors
/// If the server cannot be reached, or refuses.
pub(super) async fn ps(arguments: &ServerArguments) -> Result<ExitCode, Box<dyn Error>> {
    let listed = call(arguments, "list_environments", json!({}), Duration::from_secs(QUICK_SECONDS)).await?;
    let mut out = io::stdout().lock();
    if arguments.json {
        writeln!(out, "{listed:#}")?;
        return Ok(ExitCode::SUCCESS);
    }
    let row = |out: &mut dyn Write, cells: [&str; 5]| {
        let [id, runtime, status, created, name] = cells;
        writeln!(out, "{id:<36}  {runtime:<7}  {status:<10}  {created:<20}  {name}")
    };
    row(&mut out, ["ENVIRONMENT ID", "RUNTIME", "STATUS", "CREATED", "NAME"])?;
    for one in listed.get("environments").and_then(Value::as_array).into_iter().flatten() {
        let cells = ["environment_id", "runtime", "status", "created_at", "name"].map(|key| text(one, key));
        row(&mut out, cells)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a command, and passes its output and exit code on.
///
/// # Errors
/// If the server cannot be reached, or refuses.
pub(super) async fn exec(arguments: &ExecArguments) -> Result<ExitCode, Box<dyn Error>> {
    let code = format!("exec {}", arguments.command.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "));
    let call_arguments = json!({
        "environment_id": arguments.environment_id,
        "language": "shell",
        "code": code,
        "timeout_seconds": arguments.timeout,
    });
    let patience = Duration::from_secs(arguments.timeout).saturating_add(ANSWER_MARGIN);
    let ran = match call(&arguments.server, "execute", call_arguments, patience).await {
        Err(RemoteFault::Refused { code, message }) if code == ErrorCode::TimedOut.as_str() => {
            writeln!(io::stderr(), "waggle: {message}")?;
            return Ok(TIMED_OUT.into());
        }
        ran => ran?,
    };
    if arguments.server.json {
        writeln!(io::stdout(), "{ran:#}")?;
    } else {
        io::stdout().write_all(text(&ran, "stdout").as_bytes())?;
        io::stdout().flush()?;
        io::stderr().write_all(text(&ran, "stderr").as_bytes())?;
    }
    let exit_code = ran.get("exit_code").and_then(Value::as_u64).and_then(|code| u8::try_from(code).ok());
    Ok(exit_code.unwrap_or(u8::MAX).into())
}

/// One word of a shell, whatever is in it.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// Calls a tool and gives its structured result.
async fn call(
    server: &ServerArguments,
    tool: &str,
    arguments: Value,
    patience: Duration,
) -> Result<Value, RemoteFault> {
    let url = || server.url.clone();
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": PROTOCOL,
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": "waggle", "version": env!("CARGO_PKG_VERSION")},
    });
    let params = json!({"name": tool, "arguments": arguments, "_meta": meta});
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params});
    // Whoever was first has chosen the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().timeout(patience).build();
    let client = client.map_err(|source| RemoteFault::Reach { url: url(), source })?;
    let mut request = client.post(&server.url).header("content-type", "application/json");
    request = request.header("accept", "application/json, text/event-stream").header("mcp-protocol-version", PROTOCOL);
    request = request.header("mcp-method", "tools/call").header("mcp-name", tool);
    if let Some(token) = process_variable("WAGGLE_TOKEN").and_then(|token| token.into_string().ok()) {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let sent = request.body(body.to_string()).send().await;
    let mut answer = sent.map_err(|source| RemoteFault::Reach { url: url(), source })?;
    match answer.status().as_u16() {
        401 | 403 => return Err(RemoteFault::Token { url: url() }),
        _ if answer.status().is_success() => {}
        status => return Err(RemoteFault::Status { url: url(), status }),
    }
    let mut bytes = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(|source| RemoteFault::Reach { url: url(), source })? {
        if bytes.len() + piece.len() > ANSWER_BYTES_MAX {
            return Err(RemoteFault::Answer { url: url() });
        }
        bytes.extend_from_slice(&piece);
    }
    result(&bytes).unwrap_or_else(|| Err(RemoteFault::Answer { url: url() }))
}

/// What an answer holds, if it is one.
fn result(bytes: &[u8]) -> Option<Result<Value, RemoteFault>> {
    let answer: Value = serde_json::from_slice(bytes).ok()?;
    if let Some(fault) = answer.pointer("/error/message").and_then(Value::as_str) {
        return Some(Err(RemoteFault::Refused { code: String::new(), message: fault.to_owned() }));
    }
    let result = answer.get("result")?;
    if result.get("isError").and_then(Value::as_bool) == Some(true) {
        let said = result.pointer("/content/0/text").and_then(Value::as_str)?;
        let code = result.pointer("/structuredContent/error/code").and_then(Value::as_str).unwrap_or_default();
        return Some(Err(RemoteFault::Refused { code: code.to_owned(), message: said.to_owned() }));
    }
    result.get("structuredContent").cloned().map(Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_stays_one_word_whatever_is_in_it() {
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's $HOME; rm *"), r"'it'\''s $HOME; rm *'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn an_answer_is_a_result_a_refusal_or_none_of_a_server() {
        let told = |text: &str| match result(text.as_bytes()) {
            None => "none".to_owned(),
            Some(Ok(value)) => value.to_string(),
            Some(Err(fault)) => fault.to_string(),
        };
        assert_eq!(told(r#"{"result":{"structuredContent":{"count":0}}}"#), r#"{"count":0}"#);
        assert_eq!(told(r#"{"result":{"isError":true,"content":[{"text":"no such"}]}}"#), "no such");
        assert_eq!(told(r#"{"error":{"code":-32603,"message":"failed"}}"#), "failed");
        for nonsense in ["", "<html>", "{}", r#"{"result":{}}"#] {
            assert_eq!(told(nonsense), "none");
        }
    }
}
