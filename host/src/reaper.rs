// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Has idle environments go, at a fixed interval.
//!
//! It decides nothing: each environment's own task knows whether its time has passed.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::service::environments::Environments;

/// Runs until it is told to stop.
pub async fn run(environments: Arc<Environments>, every: Duration, stop: CancellationToken) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => environments.expire_idle(),
            () = stop.cancelled() => return,
        }
    }
}
