// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Soak test: 64 clients call a server for five minutes and check every response. The clients use both protocol
//! versions, and some of them support tasks. No response may be lost, and the server's memory must not grow.
//!
//! Usage: `soak [SECONDS]`. A run of less than five minutes only checks the responses. The server is the example
//! `conformance` in a separate process. Its environments are agents without machines, because few developers' computers
//! can run 64 busy guests. The measured memory includes that of the agents.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "it ends at a wrong response, and prints its figures"
)]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use reqwest::Client;
use rmcp::{RoleClient, ServiceExt as _, model::CallToolRequestParams, service::RunningService};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::Instant};

const CLIENTS: u64 = 64;
const ENVIRONMENTS: usize = 8;

/// Duration in minutes. The memory in the last minute is compared with the memory in the first minute.
const MINUTES: u32 = 5;

/// Limit of the memory in the last minute, as a multiple of the memory in the first minute.
const GROWTH_MAX: f64 = 1.1;

/// Number of calls per connection. Later calls use a new connection, and a new session if the protocol version has
/// sessions.
const CALLS_PER_CONNECTION: u64 = 200;

/// Number of rounds between two long calls of a client that supports tasks.
const ROUNDS_PER_TASK: u64 = 8;

/// Interval of the polls for a task.
const POLL: Duration = Duration::from_millis(200);

/// A client of one of the protocol versions.
enum Caller {
    Session(RunningService<RoleClient, ()>),
    Stateless { url: String, http: Client, supports_tasks: bool },
}

impl Caller {
    async fn connect(url: &str, number: u64) -> Self {
        if number.is_multiple_of(2) {
            let transport = rmcp::transport::StreamableHttpClientTransport::from_uri(url);
            return Self::Session(().serve(transport).await.unwrap());
        }
        Self::Stateless { url: url.to_owned(), http: Client::new(), supports_tasks: number % 4 == 1 }
    }

    async fn call(&self, tool: &'static str, arguments: Value) -> Value {
        match self {
            Self::Session(client) => {
                let arguments = serde_json::from_value(arguments).unwrap();
                let call = client.call_tool(CallToolRequestParams::new(tool).with_arguments(arguments));
                serde_json::to_value(call.await.unwrap()).unwrap()
            }
            Self::Stateless { .. } => {
                self.request("tools/call", tool, json!({"name": tool, "arguments": arguments})).await
            }
        }
    }

    /// Sends a request of the stateless protocol version.
    async fn request(&self, method: &str, name: &str, mut params: Value) -> Value {
        let Self::Stateless { url, http, supports_tasks } = self else { panic!("this client has a session") };
        let extensions = if *supports_tasks { json!({"io.modelcontextprotocol/tasks": {}}) } else { json!({}) };
        params["_meta"] = json!({
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {"extensions": extensions},
        });
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string();
        let request = http.post(url).header("content-type", "application/json");
        let request = request.header("accept", "application/json, text/event-stream");
        let request = request.header("mcp-protocol-version", "2026-07-28").header("mcp-method", method);
        let answer = request.header("mcp-name", name).body(body).send().await.unwrap();
        let mut answer: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        answer["result"].take()
    }

    /// Makes a call that is long enough to become a task if the server has capacity for a task. Checks the result.
    /// Cancels every second task.
    async fn long_call(&self, id: &str, turn: u64, tasks: &AtomicU64) {
        let arguments = json!({"environment_id": id, "code": "sleep 3; echo well", "language": "shell"});
        let answer = self.call("execute", arguments).await;
        if answer["resultType"] != "task" {
            assert_eq!(answer["structuredContent"]["stdout"], "well\n", "{answer}");
            return;
        }
        tasks.fetch_add(1, Ordering::Relaxed);
        let task = answer["taskId"].as_str().unwrap();
        let cancelled = turn.is_multiple_of(2 * ROUNDS_PER_TASK);
        if cancelled {
            self.request("tasks/cancel", task, json!({"taskId": task})).await;
        }
        let ended = loop {
            let state = self.request("tasks/get", task, json!({"taskId": task})).await;
            if state["status"] != "working" {
                break state;
            }
            tokio::time::sleep(POLL).await;
        };
        match cancelled {
            true => assert!(ended["status"] == "cancelled" || ended["status"] == "completed", "{ended}"),
            false => assert_eq!(ended["result"]["structuredContent"]["stdout"], "well\n", "{ended}"),
        }
    }

    fn supports_tasks(&self) -> bool {
        matches!(self, Self::Stateless { supports_tasks: true, .. })
    }

    async fn close(self) {
        if let Self::Session(client) = self {
            client.cancel().await.unwrap();
        }
    }
}

/// Returns a size. The sizes vary in the same way within each minute, so that the memory of two minutes is comparable.
fn scattered(turn: u64, below: u64) -> u64 {
    // Multiples of a large prime visit all sizes before one repeats.
    turn.wrapping_mul(104_729) % below
}

/// Makes one round of calls with known results.
async fn round(caller: &Caller, id: &str, number: u64, turn: u64) {
    let path = format!("client-{number}/file");
    let content = format!("{number} {turn} ").repeat(usize::try_from(scattered(turn, 500)).unwrap() + 1);
    let wrote = caller.call("write_file", json!({"environment_id": id, "path": path, "content": content})).await;
    assert_eq!(wrote["structuredContent"]["bytes_written"], content.len(), "{wrote}");
    let read = caller.call("read_file", json!({"environment_id": id, "path": path})).await;
    assert_eq!(read["content"][0]["text"], content, "{read}");
    let code = format!("echo {number}-{turn}; head -c {} /dev/zero | tr '\\0' x >&2", scattered(turn, 5000));
    let ran = caller.call("execute", json!({"environment_id": id, "code": code, "language": "shell"})).await;
    let ran = &ran["structuredContent"];
    assert_eq!(ran["stdout"], format!("{number}-{turn}\n"), "{ran}");
    assert_eq!(ran["stderr"].as_str().unwrap().len() as u64, scattered(turn, 5000));
    let refused = caller.call("read_file", json!({"environment_id": id, "path": "nowhere"})).await;
    assert_eq!(refused["structuredContent"]["error"]["code"], "not_found", "{refused}");
    let listed = caller.call("list_environments", json!({})).await;
    assert_eq!(listed["structuredContent"]["count"], ENVIRONMENTS, "{listed}");
}

/// Counters of all clients.
#[derive(Default)]
struct Done {
    calls: AtomicU64,
    tasks: AtomicU64,
}

async fn client(url: String, ids: Arc<Vec<String>>, number: u64, until: Instant, done: Arc<Done>) {
    let id = &ids[usize::try_from(number).unwrap() % ids.len()];
    let mut turn = 0;
    while Instant::now() < until {
        let caller = Caller::connect(&url, number).await;
        for _ in 0..CALLS_PER_CONNECTION / 5 {
            round(&caller, id, number, turn).await;
            if caller.supports_tasks() && turn.is_multiple_of(ROUNDS_PER_TASK) {
                caller.long_call(id, turn, &done.tasks).await;
            }
            turn += 1;
            done.calls.fetch_add(5, Ordering::Relaxed);
            if Instant::now() >= until {
                break;
            }
        }
        caller.close().await;
    }
}

fn resident_kib(server: &Child) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::main]
async fn main() {
    // The HTTP client is built without its own crypto provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let seconds = std::env::args().nth(1).map_or(u64::from(MINUTES) * 60, |seconds| seconds.parse().unwrap());
    let program = std::env::current_exe().unwrap().with_file_name("conformance");
    let mut server = Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut url = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut url).unwrap();
    let url = url.trim().to_owned();

    let maker = Caller::connect(&url, 0).await;
    let mut ids = Vec::new();
    for _ in 0..ENVIRONMENTS {
        let made = maker.call("create_environment", json!({"language": "shell"})).await;
        ids.push(made["structuredContent"]["environment_id"].as_str().unwrap().to_owned());
    }
    let (ids, done) = (Arc::new(ids), Arc::new(Done::default()));
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        clients.spawn(client(url.clone(), Arc::clone(&ids), number, until, Arc::clone(&done)));
    }
    // The mean memory use in each fifth of the duration.
    let part = Duration::from_secs(seconds) / MINUTES;
    let mut means = Vec::new();
    for index in 1..=MINUTES {
        let end = Instant::now() + part;
        let (mut sum, mut samples) = (0, 0);
        while Instant::now() < end {
            tokio::time::sleep(part / 60).await;
            sum += resident_kib(&server);
            samples += 1;
        }
        means.push(sum / samples);
        println!("part {index}: {} KiB, {} calls so far", means.last().unwrap(), done.calls.load(Ordering::Relaxed));
    }
    clients.join_all().await;
    for id in ids.iter() {
        let gone = maker.call("destroy_environment", json!({"environment_id": id})).await;
        assert_eq!(gone["structuredContent"]["status"], "destroyed", "{gone}");
    }
    maker.close().await;
    drop(server.stdin.take());
    assert!(server.wait().unwrap().success());
    #[expect(clippy::cast_precision_loss, reason = "KiB of a process are far below 2^52")]
    let growth = *means.last().unwrap() as f64 / means[0] as f64;
    let [calls, tasks] = [&done.calls, &done.tasks].map(|count| count.load(Ordering::Relaxed));
    println!("{calls} calls and {tasks} tasks, none lost; memory grew by a factor of {growth:.2}");
    assert!(tasks > 0, "no call became a task");
    // If a part is shorter than a minute, the clients' buffers have not reached their full size in the first part.
    let is_short = part < Duration::from_secs(60);
    assert!(is_short || growth <= GROWTH_MAX, "memory grew by a factor of {growth:.2}; must be at most {GROWTH_MAX}");
}
