// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Measures the frequency of the host's time stamp counter.
//!
//! Linux derives `CLOCK_MONOTONIC_RAW` from the counter and from the frequency that the kernel has determined. So the
//! ratio of counter to clock is the kernel's frequency, even if CPUID does not contain the frequency.

use std::{thread, time::Duration};

use rustix::time::{ClockId, clock_gettime};

use super::sys;

/// Duration of the measurement. A reading is off by about 100 ns, so the result is off by a few parts in a million.
const MEASURED: Duration = Duration::from_millis(100);
/// Number of readings at the start and again at the end. Of each series, the least disturbed reading is used.
const READINGS: u32 = 32;

/// Returns the frequency in kHz. Blocks for 100 ms.
pub(super) fn measure_khz() -> u32 {
    let start = reading();
    thread::sleep(MEASURED);
    let end = reading();
    let ticks = u128::from(end.ticks.saturating_sub(start.ticks));
    let nanoseconds = u128::from(end.nanoseconds.saturating_sub(start.nanoseconds)).max(1);
    u32::try_from((ticks * 1_000_000 + nanoseconds / 2) / nanoseconds).unwrap_or(u32::MAX)
}

struct Reading {
    ticks: u64,
    nanoseconds: u64,
}

// The clock is read between two readings of the counter. The closer the two are, the more exact is their mean.
fn reading() -> Reading {
    let mut best = Reading { ticks: 0, nanoseconds: 0 };
    let mut best_width = u64::MAX;
    for _ in 0..READINGS {
        let before = sys::time_stamp_counter();
        let time = clock_gettime(ClockId::MonotonicRaw);
        let width = sys::time_stamp_counter().saturating_sub(before);
        if width < best_width {
            best_width = width;
            let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
            let part = u64::try_from(time.tv_nsec).unwrap_or_default();
            best = Reading { ticks: before + width / 2, nanoseconds: seconds * 1_000_000_000 + part };
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree_to_a_few_parts_in_a_hundred_thousand() {
        let (first, second) = (measure_khz(), measure_khz());
        assert!(first > 500_000, "{first} kHz");
        assert!(first.abs_diff(second) <= first / 20_000, "{first} and {second} kHz");
    }
}
