// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Timing, rates, and the number of rounds.

use std::time::{Duration, Instant};

pub(crate) use crate::samples::Samples;

/// Runs `work`, and returns its duration and its result.
pub(crate) async fn timed<T>(work: impl Future<Output = T>) -> (Duration, T) {
    let started = Instant::now();
    let outcome = work.await;
    (started.elapsed(), outcome)
}

/// Returns the rate in MiB/s.
pub(crate) fn rate(bytes: usize, time: Duration) -> f64 {
    bytes as f64 / f64::from(1 << 20) / time.as_secs_f64()
}

/// Returns true if `--quick` was given, which means fewer rounds and no page.
pub(crate) fn is_quick() -> bool {
    std::env::args().any(|word| word == "--quick")
}

/// Returns the number of rounds: `usual`, or a fifth of `usual` with `--quick`.
pub(crate) fn rounds(usual: usize) -> usize {
    if is_quick() { usual.div_ceil(5) } else { usual }
}
