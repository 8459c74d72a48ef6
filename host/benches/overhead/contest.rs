// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Measures the cheapest call to each server. The servers take turns.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::task::JoinSet;

use crate::{
    caller::{Caller, Protocol},
    samples::Samples,
};

const TOOL: &str = "list_environments";

/// Numbers of concurrent clients.
const CLIENTS: [usize; 2] = [1, 32];

/// The index of the server without MCP.
const AXUM: usize = 0;

/// The duration of one turn of a server, and the number of turns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turns {
    pub(crate) stretch: Duration,
    pub(crate) rounds: u32,
}

/// One server, measured with one protocol.
pub(crate) struct Contestant {
    name: &'static str,
    protocol: Protocol,
    /// The index of the bare server with the same protocol.
    rival: usize,
    callers: Vec<Caller>,
}

#[derive(Default)]
struct Outcome {
    times: Samples,
    calls: usize,
    time: Duration,
}

/// Connects to bare axum, and to bare rmcp and waggle in both protocol versions.
pub(crate) async fn contestants(axum: &str, rmcp: &str, waggle: &str) -> Vec<Contestant> {
    let mut contestants = Vec::new();
    for (name, url, protocol, rival) in [
        ("bare axum", axum, Protocol::Plain, AXUM),
        ("bare rmcp", rmcp, Protocol::Session, 1),
        ("waggle", waggle, Protocol::Session, 1),
        ("bare rmcp", rmcp, Protocol::Stateless, 3),
        ("waggle", waggle, Protocol::Stateless, 3),
    ] {
        let mut callers = Vec::new();
        for _ in 0..CLIENTS[1] {
            callers.push(Caller::connect(url, protocol).await);
        }
        contestants.push(Contestant { name, protocol, rival, callers });
    }
    contestants
}

/// Measures all servers and returns the table.
pub(crate) async fn measure(contestants: &[Contestant], turns: Turns) -> String {
    let mut table = "
| server | protocol version | clients | p50 ms | p99 ms | calls/s | p50 against bare axum | against bare rmcp |
| --- | --- | --- | --- | --- | --- | --- | --- |
"
    .to_owned();
    for clients in CLIENTS {
        let mut outcomes: Vec<Outcome> = contestants.iter().map(|_| Outcome::default()).collect();
        // The machine is shared and its speed varies, so the servers take turns within each minute.
        for _ in 0..turns.rounds {
            for (contestant, outcome) in contestants.iter().zip(&mut outcomes) {
                stretch(&contestant.callers[..clients], turns.stretch, outcome).await;
            }
        }
        for (contestant, outcome) in contestants.iter().zip(&outcomes) {
            let p50 = outcome.times.median();
            let against = |other: usize| format!("{:.1} ×", p50 / outcomes[other].times.median());
            let (axum, rmcp) = match contestant.protocol {
                Protocol::Plain => (String::new(), String::new()),
                Protocol::Session | Protocol::Stateless => (against(AXUM), against(contestant.rival)),
            };
            table += &format!(
                "| {} | {} | {clients} | {p50:.2} | {:.2} | {:.0} | {axum} | {rmcp} |\n",
                contestant.name,
                contestant.protocol.describe(),
                outcome.times.percentile(99),
                outcome.calls as f64 / outcome.time.as_secs_f64(),
            );
        }
    }
    table
}

async fn stretch(callers: &[Caller], long: Duration, outcome: &mut Outcome) {
    let mut running = JoinSet::new();
    let start = Instant::now();
    for caller in callers {
        let caller = caller.clone();
        running.spawn(async move {
            let mut times = Vec::new();
            while start.elapsed() < long {
                let (time, text) = caller.call(TOOL, &json!({})).await;
                assert!(text.contains("\"count\":0"), "{text}");
                times.push(time);
            }
            times
        });
    }
    for time in running.join_all().await.into_iter().flatten() {
        outcome.times.add_ms(time);
        outcome.calls += 1;
    }
    outcome.time += start.elapsed();
}
