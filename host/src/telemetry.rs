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

/// What is logged if `RUST_LOG` says nothing. rmcp calls a cancelled call an error and every protocol error a warning;
/// ours say what is worth saying about them.
const DEFAULT_FILTER: &str = "info,rmcp=error,rmcp::service=off";

/// Starts logging for the whole process.
///
/// # Errors
/// [`TelemetryFault`] if the filter does not parse or logging has been started before.
pub fn start(filter: Option<&str>) -> Result<(), TelemetryFault> {
    let text = filter.filter(|text| !text.is_empty()).unwrap_or(DEFAULT_FILTER);
    let filter = EnvFilter::builder()
        .parse(text)
        .map_err(|source| TelemetryFault::Filter { filter: text.to_owned(), source: source.into() })?;
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
    /// `RUST_LOG` is wrong.
    #[error("failed to read the log filter \"{filter}\" of RUST_LOG")]
    Filter {
        /// The filter.
        filter: String,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Started twice.
    #[error("failed to start the log")]
    Start {
        /// What stood against it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
