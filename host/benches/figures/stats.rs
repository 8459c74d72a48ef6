// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! How figures come about.

use std::time::{Duration, Instant};

pub(crate) use crate::samples::Samples;

/// Runs `work` and tells how long it took.
pub(crate) async fn timed<T>(work: impl Future<Output = T>) -> (Duration, T) {
    let started = Instant::now();
    let outcome = work.await;
    (started.elapsed(), outcome)
}

/// MiB/s.
pub(crate) fn rate(bytes: usize, time: Duration) -> f64 {
    bytes as f64 / f64::from(1 << 20) / time.as_secs_f64()
}

/// Whether this run only takes a look.
pub(crate) fn is_quick() -> bool {
    std::env::args().any(|word| word == "--quick")
}

/// How often to measure.
pub(crate) fn rounds(usual: usize) -> usize {
    if is_quick() { usual.div_ceil(5) } else { usual }
}
