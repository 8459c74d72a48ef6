// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! A server on a port of its own, and a client of it.

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
use waggle::{
    cli::{self, Command},
    config::Settings,
    domain::{image::ImageRef, runtime::ByRuntime, tokens::Tokens},
    http,
    server::Waggle,
};

use crate::machines::{BROKEN, ENDLESS, InProcess};

/// How long a stuck test waits before it says so.
pub(crate) const STUCK: Duration = Duration::from_secs(30);

/// An environment, a session and a task that never were.
pub(crate) const NO_ONE: &str = "00000000-0000-4000-8000-000000000000";

/// What a client heard of progress: progress, total, message.
pub(crate) type Heard = Arc<Mutex<Vec<(f64, Option<f64>, String)>>>;

/// A server whose `node` environments fail to start and whose `shell` ones boot for ever, unless it is an ordinary one.
pub(crate) struct Served {
    waggle: Option<Waggle>,
    pub(crate) tokens: watch::Sender<Arc<Tokens>>,
    pub(crate) url: String,
    pub(crate) alive: Arc<AtomicUsize>,
    pub(crate) may_end: Arc<tokio::sync::Mutex<()>>,
    pub(crate) client: RunningService<RoleClient, Listener>,
    pub(crate) heard: Heard,
}

/// A client that notes the progress that it hears of.
#[derive(Clone, Default)]
pub(crate) struct Listener {
    heard: Heard,
}

impl ClientHandler for Listener {
    async fn on_progress(&self, note: ProgressNotificationParam, _context: NotificationContext<RoleClient>) {
        self.heard.lock().unwrap().push((note.progress, note.total, note.message.unwrap_or_default()));
    }
}

pub(crate) fn settings(flags: &[&str]) -> Settings {
    let words = ["waggle", "serve", "--listen-addr", "127.0.0.1:0"].iter().chain(flags).map(OsString::from);
    let command = cli::parse(words, &|_| None).unwrap().command;
    let Command::Serve(settings) = command else { panic!("serve was asked for, not {command:?}") };
    *settings
}

pub(crate) async fn serve(flags: &[&str]) -> Served {
    let good = || "oci:/good".parse::<ImageRef>().unwrap();
    serve_images(flags, ByRuntime { python: good(), node: good(), shell: good() }).await
}

/// As above, but `node` does not start and `shell` does not end to.
pub(crate) async fn serve_trouble(flags: &[&str]) -> Served {
    let images = ByRuntime {
        python: "oci:/good".parse().unwrap(),
        node: BROKEN.parse().unwrap(),
        shell: ENDLESS.parse().unwrap(),
    };
    serve_images(flags, images).await
}

/// The tokens of `serve_guarded`, and whom they stand for.
pub(crate) const ADA: &str = "ada-has-this-token-1";
pub(crate) const BOB: &str = "bob-has-this-token-1";

pub(crate) fn tokens(text: &str) -> Arc<Tokens> {
    Arc::new(Tokens::parse(text).unwrap())
}

/// A server that only ada and bob may call; its own client is ada's.
pub(crate) async fn serve_guarded(flags: &[&str]) -> Served {
    let good = || "oci:/good".parse::<ImageRef>().unwrap();
    serve_with(flags, ByRuntime { python: good(), node: good(), shell: good() }, true).await
}

async fn serve_images(flags: &[&str], images: ByRuntime<ImageRef>) -> Served {
    serve_with(flags, images, false).await
}

async fn serve_with(flags: &[&str], images: ByRuntime<ImageRef>, guarded: bool) -> Served {
    // Clients of the tests are built like those of registries, though none of them speaks TLS.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let settings = settings(flags);
    let machines = InProcess::default();
    let alive = Arc::clone(&machines.alive);
    let may_end = Arc::clone(&machines.may_end);
    let listener = http::bind(settings.listen_addr).await.unwrap();
    let check = http::Check { name: "machines", look: Box::new(|| Ok(())) };
    let mut waggle = Waggle::start(&settings, images, Arc::new(machines));
    let (tokens, receiver) = watch::channel(tokens(&format!("ada {ADA}\nbob {BOB}")));
    let address = waggle.listen(listener, guarded.then_some(receiver), vec![check]).unwrap();
    let url = format!("http://{address}/mcp");
    let (client, heard) = connect_as(&url, guarded.then_some(ADA)).await;
    Served { waggle: Some(waggle), tokens, url, alive, may_end, client, heard }
}

pub(crate) async fn connect(url: &str) -> (RunningService<RoleClient, Listener>, Heard) {
    connect_as(url, None).await
}

pub(crate) async fn connect_as(url: &str, token: Option<&str>) -> (RunningService<RoleClient, Listener>, Heard) {
    let listener = Listener::default();
    let heard = Arc::clone(&listener.heard);
    let mut config = StreamableHttpClientTransportConfig::with_uri(url);
    if let Some(token) = token {
        config = config.auth_header(token);
    }
    let client = listener.serve(StreamableHttpClientTransport::from_config(config)).await.unwrap();
    (client, heard)
}

pub(crate) async fn call(
    client: &RunningService<RoleClient, Listener>,
    tool: &'static str,
    arguments: Value,
) -> Result<CallToolResult, ServiceError> {
    let Value::Object(arguments) = arguments else { panic!("arguments are an object") };
    let call = client.call_tool(CallToolRequestParams::new(tool).with_arguments(arguments));
    timeout(STUCK, call).await.unwrap()
}

/// Waits until something is so, which `what` says.
pub(crate) async fn until(what: &str, check: impl AsyncFn() -> bool) {
    let reached = async {
        while !check().await {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(STUCK, reached).await.unwrap_or_else(|_| panic!("waited in vain until {what}"));
}

impl Served {
    pub(crate) async fn raw(&self, tool: &'static str, arguments: Value) -> Result<CallToolResult, ServiceError> {
        call(&self.client, tool, arguments).await
    }

    /// The result's object, which has to be the same in its text.
    pub(crate) async fn call(&self, tool: &'static str, arguments: Value) -> Value {
        let result = self.raw(tool, arguments).await.unwrap();
        assert_eq!(result.is_error, Some(false), "{result:?}");
        let object = result.structured_content.unwrap();
        assert_eq!(result.content[0].as_text().unwrap().text, format!("{object:#}"));
        object
    }

    /// The text of a result that is the caller's error, and its code.
    pub(crate) async fn refused(&self, tool: &'static str, arguments: Value) -> (String, String) {
        let result = self.raw(tool, arguments).await.unwrap();
        assert_eq!(result.is_error, Some(true), "{result:?}");
        let text = result.content[0].as_text().unwrap().text.clone();
        let error = result.structured_content.unwrap()["error"].take();
        assert_eq!((error["message"].as_str().unwrap(), error["hint"].is_string()), (text.as_str(), true));
        (text, error["code"].as_str().unwrap().to_owned())
    }

    /// The code and text of a protocol error.
    pub(crate) async fn failed(&self, tool: &'static str, arguments: Value) -> (i32, String) {
        match self.raw(tool, arguments).await {
            Err(ServiceError::McpError(fault)) => (fault.code.0, fault.message.into_owned()),
            other => panic!("{tool} should have failed: {other:?}"),
        }
    }

    pub(crate) async fn create(&self, runtime: &str) -> String {
        let created = self.call("create_environment", json!({"runtime": runtime})).await;
        created["environment_id"].as_str().unwrap().to_owned()
    }

    pub(crate) fn machines_alive(&self) -> usize {
        self.alive.load(Ordering::SeqCst)
    }

    /// Waits until some progress has been heard: the client hands it to its listener beside the answers.
    pub(crate) async fn until_heard(&self) -> Vec<(f64, Option<f64>, String)> {
        until("some progress is heard", async || !self.heard.lock().unwrap().is_empty()).await;
        self.heard.lock().unwrap().clone()
    }

    /// Waits until so many machines are there.
    pub(crate) async fn until_alive(&self, count: usize) {
        until(&format!("{count} machines are there"), async || self.machines_alive() == count).await;
    }

    pub(crate) async fn get(&self, page: &str) -> (u16, Value) {
        let url = self.url.replace("/mcp", page);
        let answer = reqwest::get(url).await.unwrap();
        (answer.status().as_u16(), serde_json::from_str(&answer.text().await.unwrap()).unwrap())
    }

    /// Talks over one pair of streams, as with a client that started the server.
    pub(crate) async fn converse(&self, streams: DuplexStream) {
        let (input, output) = split(streams);
        self.waggle.as_ref().unwrap().converse(input, output).await.unwrap();
    }

    pub(crate) async fn shut_down(&mut self) {
        timeout(STUCK, self.waggle.take().unwrap().shut_down()).await.unwrap();
    }
}
