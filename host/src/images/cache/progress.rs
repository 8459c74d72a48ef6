// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Progress of a preparation: one watch channel per job, written by the pull and the merge, read by all callers.

use std::{pin::pin, time::Duration};

use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

use crate::domain::stage::{Amount, Stage};

/// Fast enough for a progress bar.
const REPORT_INTERVAL: Duration = Duration::from_millis(250);

/// Sends the current stage; none until the first one begins.
pub(super) type StageSender = watch::Sender<Option<Stage>>;

/// Runs `work`, and meanwhile sends how many of `total` bytes are done: at most once per percent, so that a slow pull
/// does not use up the reports of an MCP call.
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
            // The first tick comes at once, and reports that the stage begins.
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
