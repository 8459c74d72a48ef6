// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Progress of a preparation. Each job has one watch channel: the pull and the merge write to the channel, and all
//! callers read from the channel.

use std::{pin::pin, time::Duration};

use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

/// Interval between two checks of the progress; short enough for a progress bar.
const REPORT_INTERVAL: Duration = Duration::from_millis(250);

/// The progress of a preparation.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Progress {
    pub step: Step,
    /// Bytes that are done in this step.
    pub done_bytes: u64,
    /// Bytes of this step in total.
    pub total_bytes: u64,
}

/// The steps of a preparation, in their order. A step is omitted if the cache has its result.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Step {
    /// Pulling missing parts of the image from its registry.
    Pull,
    /// Merging the image's layers.
    Merge,
}

/// A sender of the current progress, which is `None` until the first step begins.
pub(crate) type ProgressSender = watch::Sender<Option<Progress>>;

/// Runs `work`, and meanwhile sends the number of bytes that are done. Sends at most one report per percent of
/// `total_bytes`, so that a slow pull does not exhaust a caller's limit of reports.
pub(crate) async fn report_while<T>(
    work: impl Future<Output = T>,
    progress: &ProgressSender,
    step: Step,
    total_bytes: u64,
    done: impl Fn() -> u64,
) -> T {
    let (mut work, mut ticks, mut reported) = (pin!(work), interval(REPORT_INTERVAL), None);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            // The first tick fires at once, and reports the start of the step.
            biased;
            _ = ticks.tick() => {
                let done_bytes = done().min(total_bytes);
                let percent = done_bytes.saturating_mul(100).checked_div(total_bytes);
                if reported.replace(percent) != Some(percent) {
                    progress.send_replace(Some(Progress { step, done_bytes, total_bytes }));
                }
            }
            result = &mut work => return result,
        }
    }
}
