// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Tells a client that asked for it how far a long call is, and what its command writes meanwhile.
//!
//! Reports run beside the call and never hold it up: a client that does not read makes its reports stop, not its call.
//! Each stage counts one; reports that are about nothing new go a small part of the way to the next, so that the
//! numbers always grow. The longer a call writes, the rarer it is reported: a call has a bounded number of reports of
//! bounded size.

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

use crate::{
    domain::{live_output::LiveOutput, ports::OutputStream},
    mutex::lock,
};

/// Most reports of one call: enough for an hour of output. A session's channel holds all of them, so that a client that
/// does not read blocks no other call of its session.
pub(super) const REPORTS_MAX: usize = 1024;

/// Clients give up on silence after 60 s at the earliest; people sooner.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// A client that has not taken a report by then is not reading.
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Output of one report: more than a screen.
const OUTPUT_BYTES_MAX: usize = 4 * 1024;

/// Between two reports of output, at first: shorter looks no more alive.
const OUTPUT_INTERVAL: Duration = Duration::from_millis(250);

/// The interval doubles after so many reports of output: the first time after 16 s.
const REPORTS_PER_INTERVAL: u32 = 64;

/// Takes stages, of which only the latest matters, and output.
#[derive(Clone, Debug)]
pub(super) struct Progress {
    stages: watch::Sender<Stage>,
    /// None if nobody listens.
    live: Option<Arc<Live>>,
    start: Instant,
}

/// What a report without news goes of the way to the next stage: none arrives there, with as many reports as there may
/// be.
const STEP: f64 = 1.0 / 1024.0;

#[derive(Clone, Debug, Default)]
pub(super) struct Stage {
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
    /// No stage yet; `is_live` keeps output until it is told.
    pub(super) fn new(is_live: bool) -> (Self, watch::Receiver<Stage>) {
        let (stages, receiver) = watch::channel(Stage::default());
        let live = is_live.then(|| Arc::new(Live::new()));
        (Self { stages, live, start: Instant::now() }, receiver)
    }

    /// Says that a stage begins, or how far it is: how many came before it and which part of it is done, how many there
    /// are, and what it is.
    pub(super) fn stage(&self, at: f64, total: Option<u32>, message: impl Into<Cow<'static, str>>) {
        self.stages.send_replace(Stage { at, total, message: message.into() });
    }

    /// Says what a command has written. Never waits for the client.
    pub(super) fn output(&self, stream: OutputStream, bytes: &[u8]) {
        if let Some(live) = &self.live {
            live.with(|output| output.push(stream, bytes));
            live.arrived.notify_one();
        }
    }

    /// How far the call is, and what its command has written since this was asked, or reported, the last time.
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
    fn new() -> Self {
        Self { output: Mutex::new(LiveOutput::with_limit(OUTPUT_BYTES_MAX)), arrived: Notify::new() }
    }

    fn with<T>(&self, act: impl FnOnce(&mut LiveOutput) -> T) -> T {
        act(&mut lock(&self.output))
    }

    /// Resolves when there is output to report, but not before a time.
    async fn due(&self, not_before: Instant) {
        while self.with(|output| output.is_empty()) {
            self.arrived.notified().await;
        }
        sleep_until(not_before).await;
    }
}

/// The two ends: what takes stages and output, and what reports them until it is dropped, if there is a token. What
/// `is_asked` keeps output to be told on request, too.
pub(super) fn channel(
    token: Option<ProgressToken>,
    peer: Peer<RoleServer>,
    is_asked: bool,
) -> (Progress, impl Future<Output = Infallible>) {
    let (progress, receiver) = Progress::new(token.is_some() || is_asked);
    let live = progress.live.clone();
    let report = async move {
        if let (Some(token), Some(live)) = (token, live) {
            report(&token, &peer, receiver, &live).await;
        }
        pending().await
    };
    (progress, report)
}

/// Returns when there is nobody to report to any more.
async fn report(token: &ProgressToken, peer: &Peer<RoleServer>, mut stages: watch::Receiver<Stage>, live: &Live) {
    let start = Instant::now();
    let mut next_output = start;
    let (mut outputs, mut told) = (0, None);
    for _ in 0..REPORTS_MAX {
        let (output, news) = tokio::select! {
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
            None if news => stage.message.to_string(),
            None => with_seconds(&stage.message, start),
        };
        let progress = after(told, stage.at);
        let note = ProgressNotificationParam::new(token.clone(), progress);
        let note = match stage.total {
            Some(total) => note.with_total(f64::from(total)),
            None => note,
        };
        told = Some(progress);
        match timeout(REPORT_TIMEOUT, peer.notify_progress(note.with_message(message))).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

/// From one report of output to the next, `before` of which have been sent.
fn interval_after(before: u32) -> Duration {
    OUTPUT_INTERVAL.saturating_mul(1_u32.checked_shl(before / REPORTS_PER_INTERVAL).unwrap_or(u32::MAX))
}

/// The next number to tell: where the call is, or, if that would be no growth, a step towards the next stage.
fn after(told: Option<f64>, at: f64) -> f64 {
    match told {
        Some(told) if at <= told => told + (told.floor() + 1.0 - told) * STEP,
        Some(_) | None => at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_always_grows_and_never_reaches_the_next_stage() {
        let mut told = None;
        for _ in 0..REPORTS_MAX {
            let next = after(told, 1.0);
            assert!(told.is_none_or(|told| next > told) && (1.0..2.0).contains(&next), "{next} after {told:?}");
            told = Some(next);
        }
    }

    #[test]
    fn news_is_told_as_it_is_unless_it_would_be_a_step_back() {
        let mut told = None;
        let numbers = [0.0, 0.25, 0.25, 0.5, 0.4, 1.0].map(|at| {
            told = Some(after(told, at));
            told.unwrap()
        });
        assert_eq!(numbers, [0.0, 0.25, 0.25 + 0.75 * STEP, 0.5, 0.5 + 0.5 * STEP, 1.0]);
    }

    #[test]
    fn an_hour_of_output_and_heartbeats_is_reported_to_its_end() {
        let mut outputs = 0;
        let mut passed = Duration::ZERO;
        while passed < Duration::from_secs(3600) {
            passed += interval_after(outputs);
            outputs += 1;
        }
        // At the worst, each silence that is as long as the heartbeat has one.
        let beats = 3600 / HEARTBEAT.as_secs();
        assert!(u64::from(outputs) + beats < REPORTS_MAX as u64, "{outputs} and {beats}");
    }
}
