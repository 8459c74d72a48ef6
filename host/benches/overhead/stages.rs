// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The stages of an `execute`, measured by the spans that an operator can enable.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tracing::{Subscriber, span};
use tracing_subscriber::{
    Layer,
    filter::filter_fn,
    layer::{Context, SubscriberExt as _},
    registry::LookupSpan,
    util::SubscriberInitExt as _,
};
use waggle::telemetry::STAGES;

use crate::{
    caller::{Caller, Protocol},
    samples::Samples,
};

/// The names of the spans of one call.
const SPANS: [&str; 6] = ["request", "body", "call", "begin", "guest", "result"];

/// The stages in the order of the table, and their contents.
const ROWS: [(&str, &str); 8] = [
    ("round trip", "everything that the client waits for"),
    ("outside `request`", "the client, the connection, and the way of the response back to the client"),
    ("`body`", "reading the request's body"),
    ("rest of `request`", "HTTP and rmcp: routing, JSON, the way to the handler and back"),
    ("rest of `call`", "arguments, admission, building the command"),
    ("`begin`", "until the environment accepts the call"),
    ("`guest`", "until its agent has responded: link, script, spawn, the command, its outputs"),
    ("`result`", "writing the result as text and as structured content"),
];

/// The durations of the spans of one call, by span name.
#[derive(Clone, Debug, Default)]
struct Ended(Arc<Mutex<HashMap<&'static str, Duration>>>);

impl Ended {
    /// Returns the durations of a call whose response has arrived. Waits for all spans, because rmcp may hold the
    /// request's span for a moment longer.
    async fn take(&self) -> [Duration; SPANS.len()] {
        while !self.is_whole() {
            tokio::task::yield_now().await;
        }
        let ended = std::mem::take(&mut *self.0.lock().unwrap());
        SPANS.map(|name| ended[name])
    }

    fn is_whole(&self) -> bool {
        self.0.lock().unwrap().len() == SPANS.len()
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Ended {
    fn on_new_span(&self, _attributes: &span::Attributes<'_>, id: &span::Id, context: Context<'_, S>) {
        context.span(id).unwrap().extensions_mut().insert(Instant::now());
    }

    fn on_close(&self, id: span::Id, context: Context<'_, S>) {
        let span = context.span(&id).unwrap();
        let begun = *span.extensions().get::<Instant>().unwrap();
        self.0.lock().unwrap().insert(span.name(), begun.elapsed());
    }
}

/// Measures the stages and returns the table. The spans stay enabled for the rest of the process.
pub(crate) async fn measure(url: &str, calls: usize) -> String {
    let ended = Ended::default();
    let stages = ended.clone().with_filter(filter_fn(|what| what.is_span() && what.target() == STAGES));
    tracing_subscriber::registry().with(stages).init();
    let caller = Caller::connect(url, Protocol::Stateless).await;
    let made: Value =
        serde_json::from_str(&caller.call("create_environment", &json!({"language": "shell"})).await.1).unwrap();
    // `create_environment` has fewer spans than `execute`. Its request span ends last.
    while ended.0.lock().unwrap().remove("request").is_none() {
        tokio::task::yield_now().await;
    }
    ended.0.lock().unwrap().clear();
    let execute = json!({"environment_id": made["result"]["structuredContent"]["environment_id"], "code": "true"});
    let mut rows: Vec<Samples> = ROWS.iter().map(|_| Samples::default()).collect();
    for _ in 0..calls {
        let (whole, text) = caller.call("execute", &execute).await;
        assert!(text.contains("\"exit_code\":0"), "{text}");
        let [request, body, call, begin, guest, result] = ended.take().await;
        let times = [
            whole,
            whole.saturating_sub(request),
            body,
            request.saturating_sub(body + call),
            call.saturating_sub(begin + guest + result),
            begin,
            guest,
            result,
        ];
        for (row, time) in rows.iter_mut().zip(times) {
            row.add_ms(time);
        }
    }
    let mut table = "\n| stage | p50 ms | p99 ms | contents |\n| --- | --- | --- | --- |\n".to_owned();
    for ((name, what), times) in ROWS.iter().zip(&rows) {
        table += &format!("| {name} | {:.3} | {:.3} | {what} |\n", times.median(), times.percentile(99));
    }
    table
}
