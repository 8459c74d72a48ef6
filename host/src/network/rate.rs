// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The rate of a machine's connections and lookups. Without it, a guest that connects and closes in a loop could use up
//! the host's connection table and ports, which all machines and the host share, and flood its name servers.
//!
//! A bucket of tokens, kept as the time at which it will be full again (the generic cell rate algorithm).

use std::{sync::Mutex, time::Duration};

use tokio::time::{Instant, sleep};
use waggle_shared::mutex::lock;

/// The default rate, per second. Package managers and browsers stay far below it, see docs/network.md.
pub const PER_SECOND_DEFAULT: u32 = 100;

/// The capacity of a bucket: what a machine may do at once, after it has done nothing for this time.
const BURST: Duration = Duration::from_secs(5);

/// Maximum wait for a token. Resolvers repeat a query after 2.5 s (musl) or 5 s (glibc), so a program that exceeds the
/// rate for a moment notices nothing.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// The rates of each machine, per second; at least 1.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    pub flows: u32,
    pub lookups: u32,
}

impl Default for Rates {
    fn default() -> Self {
        Self { flows: PER_SECOND_DEFAULT, lookups: PER_SECOND_DEFAULT }
    }
}

/// A token is missing, and none is due soon.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Exceeded {
    pub(super) per_second: u32,
}

/// The bucket of one machine.
#[derive(Debug)]
pub(super) struct Bucket {
    per_second: u32,
    /// The time at which the bucket is full, or a time in the past.
    full_at: Mutex<Instant>,
}

impl Bucket {
    /// Creates a full bucket.
    pub(super) fn new(per_second: u32) -> Self {
        Self { per_second: per_second.max(1), full_at: Mutex::new(Instant::now()) }
    }

    /// Takes a token; waits up to [`WAIT_MAX`] for it. A caller that stops waiting loses its token.
    pub(super) async fn take(&self) -> Result<(), Exceeded> {
        let wait = self.reserve()?;
        if !wait.is_zero() {
            sleep(wait).await;
        }
        Ok(())
    }

    /// Reserves a token; returns the time until it is due.
    fn reserve(&self) -> Result<Duration, Exceeded> {
        let (mut full_at, now) = (lock(&self.full_at), Instant::now());
        let full_after = full_at.saturating_duration_since(now) + Duration::from_secs(1) / self.per_second;
        let wait = full_after.saturating_sub(BURST);
        if wait > WAIT_MAX {
            return Err(Exceeded { per_second: self.per_second });
        }
        *full_at = now + full_after;
        Ok(wait)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn burst_passes_at_once_and_then_the_rate_holds() {
        let (bucket, start) = (Bucket::new(100), Instant::now());
        for _ in 0..500 {
            bucket.take().await.unwrap();
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        for _ in 0..1000 {
            bucket.take().await.unwrap();
        }
        // The timer counts in milliseconds.
        assert!((10_000..=10_002).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_bounded_number_waits() {
        let bucket = Bucket::new(10);
        let admitted = |bucket: &Bucket| (0..10_000).filter(|_| bucket.reserve().is_ok()).count();
        assert_eq!(admitted(&bucket), 50 + 20);
        assert_eq!(bucket.take().await, Err(Exceeded { per_second: 10 }));
        advance(Duration::from_secs(1)).await;
        assert_eq!(admitted(&bucket), 10);
        advance(Duration::from_secs(3600)).await;
        assert_eq!(admitted(&bucket), 50 + 20, "an idle machine saves no more than a burst");
    }
}
