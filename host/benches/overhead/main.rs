// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The figures of docs/benchmarks/overhead.md: the cost of a tool call compared with bare axum and bare rmcp, in both
//! protocol versions, and the stages of an `execute`. `./taskw bench-overhead` starts the benchmark. With `--quick` the
//! benchmark measures less and writes nothing.
//!
//! Servers and clients share one process and its processors. The clients call the cheapest tool of each server, so the
//! round trip dominates the time.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    reason = "a measurement ends where its preparation fails; it prints, and counts far below 2^52"
)]

mod caller;
mod contest;
#[path = "../figures/host.rs"]
mod host;
#[path = "../../tests/behaviour/machines.rs"]
mod machines;
#[path = "../figures/samples.rs"]
mod samples;
mod servers;
mod stages;

use std::{fs, path::Path, time::Duration};

use crate::contest::Turns;

const PAGE: &str = "../docs/benchmarks/overhead.md";

const FOOT: &str = "
## What the numbers mean

- Bare axum reads JSON and writes JSON, without MCP. Bare rmcp has a handler that returns a constant, behind axum as in
  waggle. waggle is the product without tokens. Beyond bare rmcp it has principals, limits on connections, bodies,
  sessions and calls, checks of arguments, and results both as text and as structured content.
- In the protocol version with sessions, a response is a stream of events. In the stateless version, a response is one
  JSON document.
- Servers and clients share the processors, so the figures include the clients' work.
- The stages are those that `RUST_LOG=info,waggle::stages=debug` logs, measured with one client of the stateless
  version. Each row is a separate median, so the rows need not add up to the first row. The agent is the real one, but
  runs in this process instead of a machine; [calls.md](calls.md) shows what a machine adds to `guest`.
";

#[tokio::main]
async fn main() {
    // The HTTP client is built without its own crypto provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let quick = std::env::args().any(|word| word == "--quick");
    let (turns, calls) = if quick {
        (Turns { stretch: Duration::from_millis(100), rounds: 3 }, 50)
    } else {
        (Turns { stretch: Duration::from_millis(500), rounds: 20 }, 1000)
    };
    let (waggle, url) = servers::waggle().await;
    let contestants = contest::contestants(&servers::axum().await, &servers::rmcp().await, &url).await;
    let mut page = format!(
        "# What a call costs\n\n\
         `./taskw bench-overhead` measures all of this and writes this page; with `-- --quick` it measures less and\n\
         writes nothing.\n\n\
         This run: {}. The servers were called in turn, half a second each time, because the machine is\n\
         shared and its speed varies.\n\n## A call that does nothing\n",
        host::processors()
    );
    page += &contest::measure(&contestants, turns).await;
    page += "\n## Where the time of `execute` goes\n";
    page += &stages::measure(&url, calls).await;
    page += FOOT;
    println!("{page}");
    waggle.shut_down().await;
    if !quick {
        fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE), page).unwrap();
    }
}
