// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The log: human-readable lines on standard error, chosen with `RUST_LOG`.

use std::io::IsTerminal as _;

use tracing_subscriber::{
    EnvFilter, Layer as _,
    filter::filter_fn,
    fmt::{self, format::FmtSpan},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

/// The target of the spans that account for the time of a call. `RUST_LOG=info,waggle::stages=debug` logs each at its
/// end: `request` from the first byte of its body to the head of its answer and `body` in it; `call` of a tool, and in
/// it `begin` (until its environment takes it), `guest` (until its machine has answered) and `result` (writing that).
pub const STAGES: &str = "waggle::stages";

/// The server's filter where `RUST_LOG` is unset. rmcp logs a cancelled call as an error and every protocol error as a
/// warning; waggle logs those that matter itself.
pub const SERVER_FILTER: &str = "info,rmcp=error,rmcp::service=off";

/// Starts logging for the whole process with the filter in `RUST_LOG`, or `default` where that is unset or empty.
///
/// # Errors
/// [`TelemetryFault`] if the filter is invalid or logging has been started before.
pub fn start(default: &str) -> Result<(), TelemetryFault> {
    let filter = std::env::var("RUST_LOG").ok().filter(|filter| !filter.is_empty());
    let filter = filter.unwrap_or_else(|| default.to_owned());
    let filter = EnvFilter::builder()
        .parse(&filter)
        .map_err(|source| TelemetryFault::Filter { filter, source: source.into() })?;
    let ansi = std::io::stderr().is_terminal();
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(ansi);
    let stages = fmt::layer().with_writer(std::io::stderr).with_ansi(ansi).with_span_events(FmtSpan::CLOSE);
    let stages = stages.with_filter(filter_fn(|what| what.is_span() && what.target() == STAGES));
    let log = tracing_subscriber::registry().with(filter).with(lines).with(stages);
    log.try_init().map_err(|source| TelemetryFault::Start { source: source.into() })
}

/// Logging could not be started.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryFault {
    /// The filter is invalid.
    #[error("invalid log filter \"{filter}\" in RUST_LOG")]
    Filter {
        /// The filter.
        filter: String,
        /// The parser's error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Logging has been started before.
    #[error("failed to start the log")]
    Start {
        /// The subscriber's error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
