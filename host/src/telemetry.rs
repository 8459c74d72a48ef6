// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The log: human-readable lines on standard error, chosen with `RUST_LOG`.

mod fields;

use std::io::IsTerminal as _;

use tracing_subscriber::{
    EnvFilter, Layer as _,
    filter::filter_fn,
    fmt::{self, format::FmtSpan},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use self::fields::PrintableFields;

/// Target of the spans that measure the stages of a call. `RUST_LOG=info,waggle::stages=debug` logs the duration of
/// each span:
///
/// - `request`: from the end of the authentication to the head of the response
/// - `body`: within `request`, the reading of the body
/// - `call`: one tool call
/// - `begin`: within `call`, until the environment accepts the call
/// - `guest`: within `call`, until the machine has answered
/// - `result`: within `call`, the writing of the result
pub const STAGES: &str = "waggle::stages";

/// The server's log filter if `RUST_LOG` is unset. The filter hides most messages of rmcp, which logs each cancelled
/// call as an error and each protocol error as a warning. waggle itself logs the important messages.
pub const SERVER_FILTER: &str = "info,rmcp=error,rmcp::service=off";

/// Starts logging for the whole process with the filter in `RUST_LOG`, or with `default` if `RUST_LOG` is unset or
/// empty.
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
    let lines = fmt::layer().fmt_fields(PrintableFields).with_writer(std::io::stderr).with_ansi(ansi);
    let stages = fmt::layer()
        .fmt_fields(PrintableFields)
        .with_writer(std::io::stderr)
        .with_ansi(ansi)
        .with_span_events(FmtSpan::CLOSE);
    let stages = stages.with_filter(filter_fn(|what| what.is_span() && what.target() == STAGES));
    let log = tracing_subscriber::registry().with(filter).with(lines).with(stages);
    log.try_init().map_err(|source| TelemetryFault::Start { source: source.into() })
}

/// Logging could not be started.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryFault {
    /// The filter is invalid.
    #[error("invalid log filter \"{filter}\" in RUST_LOG")]
    Filter { filter: String, source: Box<dyn std::error::Error + Send + Sync> },
    /// This process has already started logging.
    #[error("failed to start the log")]
    Start { source: Box<dyn std::error::Error + Send + Sync> },
}
