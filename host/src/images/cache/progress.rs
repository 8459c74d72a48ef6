// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Progress of a preparation. Each job has one watch channel: the pull and the merge write to the channel, and all
//! callers read from the channel.

use std::{pin::pin, time::Duration};

use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

use crate::domain::stage::{Amount, Stage};

/// Interval between two checks of the progress; short enough for a progress bar.
const REPORT_INTERVAL: Duration = Duration::from_millis(250);

/// A sender of the current stage, which is `None` until the first stage begins.
pub(super) type StageSender = watch::Sender<Option<Stage>>;

/// Runs `work`, and meanwhile sends the number of bytes that are done. Sends at most one report per percent of `total`,
/// so a slow pull does not exhaust the report limit of an MCP call.
pub(super) async fn report_while<T>(
    work: impl Future<Output = T>,
    stages: &StageSender,
    stage: fn(Amount) -> Stage,
    total: u64,
    done: impl Fn() -> u64,
) -> T {
    let (mut work, mut ticks, mut reported) = (pin!(work), interval(REPORT_INTERVAL), None);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            // The first tick fires at once, and reports the start of the stage.
            biased;
            _ = ticks.tick() => {
                let amount = Amount { done: done().min(total), total };
                let percent = amount.done.saturating_mul(100).checked_div(total);
                if reported.replace(percent) != Some(percent) {
                    stages.send_replace(Some(stage(amount)));
                }
            }
            result = &mut work => return result,
        }
    }
}
