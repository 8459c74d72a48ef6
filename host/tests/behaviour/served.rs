// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! A server on a free port, and its client.

use std::{
    ffi::OsString,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rmcp::{
    ClientHandler, RoleClient, ServiceError, ServiceExt as _,
    model::{CallToolRequestParams, CallToolResult, ProgressNotificationParam},
    service::{NotificationContext, RunningService},
    transport::{StreamableHttpClientTransport, streamable_http_client::StreamableHttpClientTransportConfig},
};
use serde_json::{Value, json};
use tokio::{
    io::{DuplexStream, split},
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use waggle::{
    cli::{self, Command},
    config::Settings,
    domain::{runtime::ByRuntime, tokens::Tokens},
    http,
    server::{Lasting, Waggle},
};
use waggle_images::reference::ImageRef;

use crate::machines::{BROKEN, ENDLESS, Faults, InProcess};

/// Maximum time that a test waits for an event before the test fails.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

/// An id that no environment, session or task has.
pub(crate) const UNKNOWN_ID: &str = "00000000-0000-4000-8000-000000000000";

/// The progress reports that a client received: progress, total, message.
pub(crate) type Reports = Arc<Mutex<Vec<(f64, Option<f64>, String)>>>;

/// A running server with its client.
pub(crate) struct Served {
    waggle: Option<Waggle>,
    pub(crate) tokens: watch::Sender<Arc<Tokens>>,
    pub(crate) url: String,
    pub(crate) alive: Arc<AtomicUsize>,
    /// The number of machines that were started.
    pub(crate) starts: Arc<AtomicUsize>,
    pub(crate) may_end: Arc<tokio::sync::Mutex<()>>,
    pub(crate) may_go_on: Arc<tokio::sync::Mutex<()>>,
    pub(crate) faults: Arc<Faults>,
    pub(crate) client: RunningService<RoleClient, Listener>,
    pub(crate) reports: Reports,
}

/// A client that records progress reports.
#[derive(Clone, Default)]
pub(crate) struct Listener {
    reports: Reports,
}

impl ClientHandler for Listener {
    async fn on_progress(&self, note: ProgressNotificationParam, _context: NotificationContext<RoleClient>) {
        self.reports.lock().unwrap().push((note.progress, note.total, note.message.unwrap_or_default()));
    }
}

pub(crate) fn settings(flags: &[&str]) -> Settings {
    let words = ["waggle", "serve", "--listen-addr", "127.0.0.1:0"].iter().chain(flags).map(OsString::from);
    let command = cli::parse(words, &|_| None).unwrap().command;
    let Command::Serve(settings) = command else { panic!("expected the command `serve`, got {command:?}") };
    *settings
}

pub(crate) async fn serve(flags: &[&str]) -> Served {
    serve_lasting(flags, Lasting::default()).await
}

/// Starts a server with what earlier servers have left.
pub(crate) async fn serve_lasting(flags: &[&str], lasting: Lasting) -> Served {
    serve_with(flags, good_images(), false, lasting).await
}

fn good_images() -> ByRuntime<ImageRef> {
    let good = || "oci:/good".parse::<ImageRef>().unwrap();
    ByRuntime { python: good(), node: good(), shell: good() }
}

/// Starts a server whose `node` environments fail to start and whose `shell` environments never finish booting.
pub(crate) async fn serve_trouble(flags: &[&str]) -> Served {
    let images = ByRuntime {
        python: "oci:/good".parse().unwrap(),
        node: BROKEN.parse().unwrap(),
        shell: ENDLESS.parse().unwrap(),
    };
    serve_with(flags, images, false, Lasting::default()).await
}

/// The tokens of the principals ada and bob, which `serve_guarded` accepts.
pub(crate) const ADA: &str = "ada-has-this-token-1";
pub(crate) const BOB: &str = "bob-has-this-token-1";

pub(crate) fn tokens(text: &str) -> Arc<Tokens> {
    Arc::new(Tokens::parse(text).unwrap())
}

/// Starts a server with tokens for ada and bob. The client has ada's token.
pub(crate) async fn serve_guarded(flags: &[&str]) -> Served {
    serve_guarded_lasting(flags, Lasting::default()).await
}

/// Starts a server with tokens, and with what earlier servers have left.
pub(crate) async fn serve_guarded_lasting(flags: &[&str], lasting: Lasting) -> Served {
    serve_with(flags, good_images(), true, lasting).await
}

async fn serve_with(flags: &[&str], images: ByRuntime<ImageRef>, guarded: bool, lasting: Lasting) -> Served {
    // HTTP clients are built with TLS support, which needs a crypto provider even if no test uses TLS.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let settings = settings(flags);
    let machines = InProcess::default();
    let alive = Arc::clone(&machines.alive);
    let starts = Arc::clone(&machines.starts);
    let may_end = Arc::clone(&machines.may_end);
    let may_go_on = Arc::clone(&machines.may_go_on);
    let faults = Arc::clone(&machines.faults);
    let listener = http::bind(settings.listen_addr).await.unwrap();
    let check = http::Check { name: "machines", is_required: true, run: Box::new(|| Ok(())) };
    let mut waggle = Waggle::start_lasting(&settings, images, Arc::new(machines), lasting);
    let (tokens, receiver) = watch::channel(tokens(&format!("ada {ADA}\nbob {BOB}")));
    let address = waggle.listen(listener, guarded.then_some(receiver), vec![check]).unwrap();
    let url = format!("http://{address}/mcp");
    let (client, reports) = connect_as(&url, guarded.then_some(ADA)).await;
    Served { waggle: Some(waggle), tokens, url, alive, starts, may_end, may_go_on, faults, client, reports }
}

pub(crate) async fn connect(url: &str) -> (RunningService<RoleClient, Listener>, Reports) {
    connect_as(url, None).await
}

pub(crate) async fn connect_as(url: &str, token: Option<&str>) -> (RunningService<RoleClient, Listener>, Reports) {
    let listener = Listener::default();
    let reports = Arc::clone(&listener.reports);
    let mut config = StreamableHttpClientTransportConfig::with_uri(url);
    if let Some(token) = token {
        config = config.auth_header(token);
    }
    let client = listener.serve(StreamableHttpClientTransport::from_config(config)).await.unwrap();
    (client, reports)
}

pub(crate) async fn call(
    client: &RunningService<RoleClient, Listener>,
    tool: &'static str,
    arguments: Value,
) -> Result<CallToolResult, ServiceError> {
    let Value::Object(arguments) = arguments else { panic!("the arguments must be a JSON object") };
    let call = client.call_tool(CallToolRequestParams::new(tool).with_arguments(arguments));
    timeout(TIMEOUT, call).await.unwrap()
}

/// Waits until `check` returns true. If the wait times out, the error contains `what`, the condition in words.
pub(crate) async fn until(what: &str, check: impl AsyncFn() -> bool) {
    let reached = async {
        while !check().await {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(TIMEOUT, reached).await.unwrap_or_else(|_| panic!("timed out waiting until {what}"));
}

impl Served {
    pub(crate) async fn raw(&self, tool: &'static str, arguments: Value) -> Result<CallToolResult, ServiceError> {
        call(&self.client, tool, arguments).await
    }

    /// Calls a tool, and returns the structured content of the result. The result's text must be the same JSON.
    pub(crate) async fn call(&self, tool: &'static str, arguments: Value) -> Value {
        let result = self.raw(tool, arguments).await.unwrap();
        assert_eq!(result.is_error, Some(false), "{result:?}");
        let object = result.structured_content.unwrap();
        assert_eq!(result.content[0].as_text().unwrap().text, object.to_string());
        object
    }

    /// Calls a tool that must return an error without a command's result, and returns the error's message and code.
    pub(crate) async fn refused(&self, tool: &'static str, arguments: Value) -> (String, String) {
        let result = self.raw(tool, arguments).await.unwrap();
        assert_eq!(result.is_error, Some(true), "{result:?}");
        let text = result.content[0].as_text().unwrap().text.clone();
        let error = &result.meta.unwrap().0["waggle/error"];
        let [message, code, hint] = ["message", "code", "hint"].map(|key| error[key].as_str().unwrap());
        let rest = text.strip_prefix(message).unwrap();
        assert!(rest.is_empty() || rest == format!("\n{hint}"), "{text}");
        (message.to_owned(), code.to_owned())
    }

    /// Calls a tool that must fail with a protocol error, and returns the code and the message of the error.
    pub(crate) async fn failed(&self, tool: &'static str, arguments: Value) -> (i32, String) {
        match self.raw(tool, arguments).await {
            Err(ServiceError::McpError(fault)) => (fault.code.0, fault.message.into_owned()),
            other => panic!("{tool} should have failed: {other:?}"),
        }
    }

    pub(crate) async fn create(&self, runtime: &str) -> String {
        let created = self.call("create_environment", json!({"language": runtime})).await;
        created["environment_id"].as_str().unwrap().to_owned()
    }

    pub(crate) fn machines_alive(&self) -> usize {
        self.alive.load(Ordering::SeqCst)
    }

    /// Waits for the first progress report. A report can arrive after the answer, because the client handles both
    /// concurrently.
    pub(crate) async fn until_reported(&self) -> Vec<(f64, Option<f64>, String)> {
        until("progress is reported", async || !self.reports.lock().unwrap().is_empty()).await;
        self.reports.lock().unwrap().clone()
    }

    /// Waits until `count` machines are running.
    pub(crate) async fn until_alive(&self, count: usize) {
        until(&format!("{count} machines are running"), async || self.machines_alive() == count).await;
    }

    pub(crate) async fn get(&self, page: &str) -> (u16, Value) {
        let url = self.url.replace("/mcp", page);
        let answer = reqwest::get(url).await.unwrap();
        (answer.status().as_u16(), serde_json::from_str(&answer.text().await.unwrap()).unwrap())
    }

    /// Serves a client over a pair of streams, in place of standard input and output.
    pub(crate) async fn converse(&self, streams: DuplexStream) {
        let (input, output) = split(streams);
        self.waggle.as_ref().unwrap().converse(input, output).await.unwrap();
    }

    /// Serves the handler of HTTP requests over a pair of streams, so that its requests have no caller.
    pub(crate) async fn converse_as_http(&self, streams: DuplexStream) {
        let (input, output) = split(streams);
        let tools = self.waggle.as_ref().unwrap().tools();
        waggle::mcp::converse(tools, input, output, CancellationToken::new()).await.unwrap();
    }

    pub(crate) async fn shut_down(&mut self) {
        timeout(TIMEOUT, self.waggle.take().unwrap().shut_down()).await.unwrap();
    }
}
