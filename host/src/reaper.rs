// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Destroys or suspends idle environments, and removes old saved ones, at a fixed interval.
//!
//! The reaper only triggers the checks. The driver of each environment decides whether the environment has reached its
//! idle timeout, and the store of saved machines which of them are too old.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::service::environments::Environments;

/// Triggers the check once per interval `every`, until `stop` is cancelled.
pub async fn run(environments: Arc<Environments>, every: Duration, stop: CancellationToken) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                environments.expire_saved().await;
                environments.expire_idle();
            }
            () = stop.cancelled() => return,
        }
    }
}
