// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Reports the progress of a long call, and the output of the call's command, to a client that asked for progress.
//!
//! Reports are sent concurrently with the call and never block the call: if a client does not read, the reports stop,
//! but the call continues. Each stage counts as 1. A report without a new stage advances by a small fraction of a
//! stage, because the numbers must always increase. The interval between reports of output doubles repeatedly, so the
//! maximum number of reports is enough for an hour of output.

use std::{
    borrow::Cow,
    convert::Infallible,
    future::{Future, pending},
    sync::{Arc, Mutex},
    time::Duration,
};

use rmcp::{
    Peer, RoleServer,
    model::{ProgressNotificationParam, ProgressToken},
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use waggle_shared::mutex::lock;

use crate::domain::{command::OutputStream, live_output::LiveOutput};

/// Maximum number of reports of one call: enough for an hour of output. A session's channel has room for all reports of
/// a call, so a client that does not read them does not block other calls of its session.
pub(super) const REPORTS_MAX: usize = 1024;

/// Maximum time between two reports. Clients time out after 60 s at the earliest; people lose patience sooner.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Timeout for a client to accept a report. After this timeout, the client gets no more reports.
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum bytes of output in one report: more than a screen.
const OUTPUT_BYTES_MAX: usize = 4 * 1024;

/// The first interval between two reports of output. A shorter interval would not help a reader.
const OUTPUT_INTERVAL: Duration = Duration::from_millis(250);

/// Number of output reports after which the interval between them doubles. The first doubling is after 16 s.
const REPORTS_PER_INTERVAL: u32 = 64;

/// The sending side. It accepts stages and output; of several unreported stages, only the latest is reported.
#[derive(Clone, Debug)]
pub(super) struct Progress {
    stages: watch::Sender<CurrentStage>,
    /// `None` if the client did not ask for output.
    live: Option<Arc<Live>>,
    start: Instant,
}

/// A report without a new stage advances by this fraction of the distance to the next stage. [`REPORTS_MAX`] such
/// reports never reach the next stage.
const STEP: f64 = 1.0 / 1024.0;

#[derive(Clone, Debug, Default)]
pub(super) struct CurrentStage {
    at: f64,
    total: Option<u32>,
    message: Cow<'static, str>,
}

/// Output that has not been reported yet.
#[derive(Debug)]
struct Live {
    output: Mutex<LiveOutput>,
    arrived: Notify,
}

impl Progress {
    /// Creates a sender without a stage, and the receiver of the stages. With `is_live`, output is buffered for
    /// reports.
    pub(super) fn new(is_live: bool) -> (Self, watch::Receiver<CurrentStage>) {
        let (stages, receiver) = watch::channel(CurrentStage::default());
        let output = || Mutex::new(LiveOutput::with_limit(OUTPUT_BYTES_MAX));
        let live = is_live.then(|| Arc::new(Live { output: output(), arrived: Notify::new() }));
        (Self { stages, live, start: Instant::now() }, receiver)
    }

    /// Sets the current stage. `at` is the number of completed stages plus the completed fraction of the current stage;
    /// `total` is the number of stages.
    pub(super) fn stage(&self, at: f64, total: Option<u32>, message: impl Into<Cow<'static, str>>) {
        self.stages.send_replace(CurrentStage { at, total, message: message.into() });
    }

    /// Buffers output of the command. Never waits for the client.
    pub(super) fn output(&self, stream: OutputStream, bytes: &[u8]) {
        if let Some(live) = &self.live {
            live.with(|output| output.push(stream, bytes));
            live.arrived.notify_one();
        }
    }

    /// Returns the current stage, and the output since the last status or report.
    pub(super) fn status(&self) -> String {
        let stage = self.stages.borrow().message.clone();
        let status = with_seconds(&stage, self.start);
        match self.live.as_ref().and_then(|live| live.with(LiveOutput::take)) {
            Some(output) => format!("{status}\n{output}"),
            None => status,
        }
    }
}

fn with_seconds(stage: &str, start: Instant) -> String {
    format!("{stage} ({} s)", start.elapsed().as_secs())
}

impl Live {
    fn with<T>(&self, act: impl FnOnce(&mut LiveOutput) -> T) -> T {
        act(&mut lock(&self.output))
    }

    /// Waits until there is output to report, and at least until `not_before`.
    async fn due(&self, not_before: Instant) {
        while self.with(|output| output.is_empty()) {
            self.arrived.notified().await;
        }
        sleep_until(not_before).await;
    }
}

/// Returns the sending side, and a future that reports to the client if there is a token. The future never resolves.
/// With `is_polled`, output is also buffered for [`Progress::status`].
pub(super) fn channel(
    token: Option<ProgressToken>,
    peer: Peer<RoleServer>,
    is_polled: bool,
) -> (Progress, impl Future<Output = Infallible>) {
    let (progress, receiver) = Progress::new(token.is_some() || is_polled);
    let live = progress.live.clone();
    let report = async move {
        if let (Some(token), Some(live)) = (token, live) {
            report(&token, &peer, receiver, &live).await;
        }
        pending().await
    };
    (progress, report)
}

/// Reports until the limit is reached or the client stops reading.
async fn report(
    token: &ProgressToken,
    peer: &Peer<RoleServer>,
    mut stages: watch::Receiver<CurrentStage>,
    live: &Live,
) {
    let start = Instant::now();
    let mut next_output = start;
    let (mut outputs, mut reported) = (0, None);
    for _ in 0..REPORTS_MAX {
        let (output, is_new) = tokio::select! {
            biased;
            changed = stages.changed() => match changed {
                Ok(()) => (None, true),
                Err(_) => return,
            },
            () = live.due(next_output) => (live.with(LiveOutput::take), false),
            () = sleep(HEARTBEAT) => (None, false),
        };
        let stage = stages.borrow_and_update().clone();
        let message = match output {
            Some(output) => {
                next_output = Instant::now() + interval_after(outputs);
                outputs += 1;
                output
            }
            None if is_new => stage.message.to_string(),
            None => with_seconds(&stage.message, start),
        };
        let progress = next(reported, stage.at);
        let mut note = ProgressNotificationParam::new(token.clone(), progress);
        note.total = stage.total.map(f64::from);
        reported = Some(progress);
        let Ok(Ok(())) = timeout(REPORT_TIMEOUT, peer.notify_progress(note.with_message(message))).await else {
            return;
        };
    }
}

/// Returns the interval before the next report of output, after `before` such reports.
fn interval_after(before: u32) -> Duration {
    OUTPUT_INTERVAL.saturating_mul(1_u32.checked_shl(before / REPORTS_PER_INTERVAL).unwrap_or(u32::MAX))
}

/// Returns the next number to report: `at` if it exceeds the last reported number. Otherwise, the last reported number
/// plus one step towards the next stage.
fn next(reported: Option<f64>, at: f64) -> f64 {
    match reported {
        Some(reported) if at <= reported => reported + (reported.floor() + 1.0 - reported) * STEP,
        Some(_) | None => at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_always_grows_and_never_reaches_the_next_stage() {
        let mut reported = None;
        for _ in 0..REPORTS_MAX {
            let number = next(reported, 1.0);
            assert!(reported.is_none_or(|last| number > last), "{number} after {reported:?}");
            assert!((1.0..2.0).contains(&number), "{number}");
            reported = Some(number);
        }
    }

    #[test]
    fn stage_is_reported_as_it_is_if_it_exceeds_the_last_report() {
        let mut reported = None;
        let numbers = [0.0, 0.25, 0.25, 0.5, 0.4, 1.0].map(|at| {
            reported = Some(next(reported, at));
            reported.unwrap()
        });
        assert_eq!(numbers, [0.0, 0.25, 0.25 + 0.75 * STEP, 0.5, 0.5 + 0.5 * STEP, 1.0]);
    }

    #[test]
    fn report_limit_covers_an_hour_of_output_and_heartbeats() {
        let mut outputs = 0;
        let mut passed = Duration::ZERO;
        while passed < Duration::from_secs(3600) {
            passed += interval_after(outputs);
            outputs += 1;
        }
        // In the worst case each heartbeat is sent as well.
        let beats = 3600 / HEARTBEAT.as_secs();
        assert!(u64::from(outputs) + beats < REPORTS_MAX as u64, "{outputs} and {beats}");
    }
}
