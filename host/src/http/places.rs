// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The places of connections: how many there are, and which connection goes when all are taken.
//!
//! A connection is unproven until one of its requests has passed the check of tokens. When all places are taken, the
//! unproven connection that has been without a complete head for longest loses its place, so sockets of peers without
//! a token do not prevent callers from connecting. A proven connection keeps its place until it ends.
//!
//! Addresses play no part. Behind a proxy all callers have the same address, and a peer may have very many.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use waggle_shared::mutex::lock;

/// Timeout for the first complete head of a connection, including what comes before it, such as a TLS handshake.
/// Clients send their first request as soon as they have connected; three lost packets in a row cost 7 s.
pub(super) const FIRST_HEAD_TIME: Duration = Duration::from_secs(10);

/// The places of all connections of a server.
#[derive(Debug)]
pub(super) struct Places {
    permits: Arc<Semaphore>,
    unproven: Arc<Mutex<Unproven>>,
}

/// The unproven connections, by the order of their last complete heads; a new connection counts as one that has just
/// sent a head.
#[derive(Debug, Default)]
struct Unproven {
    next: u64,
    evictions: BTreeMap<u64, CancellationToken>,
}

impl Unproven {
    fn add(&mut self, evicted: CancellationToken) -> u64 {
        let position = self.next;
        self.next += 1;
        self.evictions.insert(position, evicted);
        position
    }
}

/// The place of one connection; dropping it frees the place.
#[derive(Debug)]
pub(super) struct Place {
    standing: Arc<Standing>,
    first_head_until: Instant,
    _permit: OwnedSemaphorePermit,
}

/// The part of a place that the requests of its connection change. It does not keep the place taken.
#[derive(Debug)]
pub(super) struct Standing {
    unproven: Arc<Mutex<Unproven>>,
    /// The key in `unproven`, as long as the connection is in it.
    position: AtomicU64,
    has_head: CancellationToken,
    /// Cancelled under the lock of `unproven`.
    evicted: CancellationToken,
}

/// A connection has lost its place, and ends without serving another request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Evicted;

impl Places {
    pub(super) fn new(connections_max: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(connections_max)), unproven: Arc::default() }
    }

    /// Takes a place. If all are taken, it evicts an unproven connection, and waits until that one has ended; returns
    /// `None` if all connections are proven.
    pub(super) async fn take(&self) -> Option<Place> {
        let permit = match Arc::clone(&self.permits).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                {
                    // Under the lock, so that no request of this connection begins from now on.
                    let mut unproven = lock(&self.unproven);
                    let (_, oldest) = unproven.evictions.pop_first()?;
                    oldest.cancel();
                }
                // An evicted connection ends at its next poll.
                Arc::clone(&self.permits).acquire_owned().await.ok()?
            }
        };
        let evicted = CancellationToken::new();
        let position = lock(&self.unproven).add(evicted.clone()).into();
        let unproven = Arc::clone(&self.unproven);
        let has_head = CancellationToken::new();
        let standing = Arc::new(Standing { unproven, position, has_head, evicted });
        Some(Place { standing, first_head_until: Instant::now() + FIRST_HEAD_TIME, _permit: permit })
    }
}

impl Place {
    pub(super) fn standing(&self) -> &Arc<Standing> {
        &self.standing
    }

    /// Waits until the connection has lost its place to another one. The owner must then drop the place at once.
    pub(super) async fn evicted(&self) {
        self.standing.evicted.cancelled().await;
    }

    /// Waits until the timeout of the first head. Never returns if a complete head arrives before that.
    pub(super) async fn first_head_timed_out(&self) {
        tokio::select! {
            biased;
            () = self.standing.has_head.cancelled() => std::future::pending().await,
            () = sleep_until(self.first_head_until) => {}
        }
    }

    /// Whether a complete head has arrived.
    pub(super) fn has_head(&self) -> bool {
        self.standing.has_head.is_cancelled()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.standing.prove();
    }
}

impl Standing {
    /// Records a complete head: of all unproven connections this one is the last to be evicted now.
    ///
    /// # Errors
    /// [`Evicted`] if the connection has lost its place. The request must then be refused.
    pub(super) fn record_head(&self) -> Result<(), Evicted> {
        self.has_head.cancel();
        let mut unproven = lock(&self.unproven);
        if let Some(evicted) = unproven.evictions.remove(&self.position.load(Relaxed)) {
            self.position.store(unproven.add(evicted), Relaxed);
        }
        if self.evicted.is_cancelled() { Err(Evicted) } else { Ok(()) }
    }

    /// Records that a request of the connection has passed the check of tokens. The connection is not evicted then.
    ///
    /// # Errors
    /// The same as for [`Standing::record_head`].
    pub(super) fn prove(&self) -> Result<(), Evicted> {
        lock(&self.unproven).evictions.remove(&self.position.load(Relaxed));
        if self.evicted.is_cancelled() { Err(Evicted) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn taken(places: &Places) -> Place {
        places.take().now_or_never().unwrap().unwrap()
    }

    #[tokio::test]
    async fn longest_silent_unproven_connection_is_evicted() {
        let places = Places::new(4);
        let held = [taken(&places), taken(&places), taken(&places), taken(&places)];
        held[0].standing().prove().unwrap();
        held[1].standing().record_head().unwrap();
        let mut evictions = Vec::new();
        let mut held: Vec<_> = held.into_iter().map(Some).collect();
        for _ in 0..3 {
            let next = places.take();
            tokio::pin!(next);
            assert!(next.as_mut().now_or_never().is_none());
            let evicted =
                held.iter().position(|place| place.as_ref().is_some_and(|one| one.standing.evicted.is_cancelled()));
            evictions.push(evicted.unwrap());
            held[evicted.unwrap()] = None;
            let place = next.now_or_never().unwrap().unwrap();
            place.standing().prove().unwrap();
            held.push(Some(place));
        }
        assert_eq!(evictions, [2, 3, 1]);
        assert!(places.take().now_or_never().unwrap().is_none(), "all connections are proven");
        held.pop();
        assert!(places.take().now_or_never().unwrap().is_some());
    }

    #[tokio::test]
    async fn evicted_connection_begins_no_request() {
        let places = Places::new(2);
        let (silent, late) = (taken(&places), taken(&places));
        silent.standing().record_head().unwrap();
        for _ in 0..2 {
            assert!(places.take().now_or_never().is_none());
        }
        assert_eq!(late.standing().record_head(), Err(Evicted));
        assert_eq!((silent.standing().prove(), late.standing().prove()), (Err(Evicted), Err(Evicted)));
    }

    #[tokio::test(start_paused = true)]
    async fn first_head_has_a_timeout_that_ends_with_the_head() {
        let places = Places::new(2);
        let (slow, quick) = (taken(&places), taken(&places));
        quick.standing().record_head().unwrap();
        let start = Instant::now();
        slow.first_head_timed_out().await;
        assert_eq!(start.elapsed().as_secs(), 10);
        assert!(quick.first_head_timed_out().now_or_never().is_none());
        assert_eq!((slow.has_head(), quick.has_head()), (false, true));
    }

    #[tokio::test]
    async fn ended_connections_leave_nothing() {
        let places = Places::new(1);
        for _ in 0..3 {
            let place = taken(&places);
            place.standing().record_head().unwrap();
            drop(place);
        }
        assert!(lock(&places.unproven).evictions.is_empty());
    }
}
