// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The credit that a side grants to its peer on a stream. Each stream begins with a little credit. Streams that use
//! their credit borrow more from a pool that all streams of the link share.

use crate::limits::LinkLimits;

/// The credit that the streams of one link can borrow in addition to their initial credit.
#[derive(Debug)]
pub(crate) struct Pool {
    left: usize,
    /// Part of the pool that streams cannot borrow. When less than twice this amount is left in the pool, streams
    /// return borrowed credit.
    scarce: usize,
}

impl Pool {
    pub(crate) fn new(bytes: usize) -> Self {
        Self { left: bytes, scarce: bytes / 8 }
    }

    pub(crate) fn left(&self) -> usize {
        self.left
    }

    fn borrow(&mut self, bytes: u32) -> bool {
        let rest = self.left.checked_sub(bytes as usize).filter(|rest| *rest >= self.scarce);
        self.left = rest.unwrap_or(self.left);
        rest.is_some()
    }

    fn put_back(&mut self, bytes: u32) {
        self.left += bytes as usize;
    }
}

/// The credit that one stream has granted to its peer.
#[derive(Debug)]
pub(crate) struct Window {
    initial: u32,
    size_max: u32,
    /// Maximum number of the peer's bytes that are in flight or buffered on this side.
    size: u32,
    /// Bytes that the peer may still send.
    open: u32,
    /// Bytes that were read and for which no new credit was granted yet.
    consumed: u32,
}

impl Window {
    pub(crate) fn new(limits: &LinkLimits) -> Self {
        Self {
            initial: limits.credit,
            size_max: limits.credit_max,
            size: limits.credit,
            open: limits.credit,
            consumed: 0,
        }
    }

    /// Returns the maximum number of the peer's bytes that are buffered on this side.
    pub(crate) fn size(&self) -> usize {
        self.size as usize
    }

    /// Returns the number of bytes that the peer may still send.
    pub(crate) fn open(&self) -> u32 {
        self.open
    }

    /// Uses up credit for received data, which must not exceed [`Self::open`].
    pub(crate) fn received(&mut self, bytes: u32) {
        self.open = self.open.saturating_sub(bytes);
    }

    /// Counts bytes that were read. Returns the grant that is due, if any, which is at least a quarter of the initial
    /// credit.
    pub(crate) fn consumed(&mut self, bytes: usize, pool: &mut Pool) -> Option<u32> {
        self.consumed = self.consumed.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        if self.consumed < self.size / 2 {
            return None;
        }
        let more = self.size.min(self.size_max - self.size);
        let mut grant = self.consumed;
        if more > 0 && pool.borrow(more) {
            self.size += more;
            grant += more;
        } else if pool.left < pool.scarce * 2 {
            let less = (self.size - self.initial).min(grant / 2);
            pool.put_back(less);
            self.size -= less;
            grant -= less;
        }
        self.consumed = 0;
        self.open += grant;
        Some(grant)
    }

    /// Returns the borrowed credit to the pool. The peer may still use its credit, but the data is discarded.
    pub(crate) fn release(&mut self, pool: &mut Pool) {
        pool.put_back(self.size - self.initial);
        self.size = self.initial;
    }
}

#[cfg(test)]
mod tests {
    use waggle_protocol::{
        Link,
        egress::{FLOW_CREDIT_BYTES, FLOW_CREDIT_BYTES_MAX},
    };

    use super::*;
    use crate::{header::GRANT_BYTES_MIN, limits::EGRESS_POOL_BYTES};

    fn window() -> Window {
        Window::new(&LinkLimits::of(Link::Egress))
    }

    fn use_up(window: &mut Window, pool: &mut Pool) {
        let open = window.open();
        window.received(open);
        window.consumed(open as usize, pool);
    }

    #[test]
    fn window_grows_with_use_and_returns_credit_to_the_pool() {
        let (mut pool, mut window) = (Pool::new(EGRESS_POOL_BYTES), window());
        for _ in 0..10 {
            use_up(&mut window, &mut pool);
        }
        assert_eq!((window.size, window.open()), (FLOW_CREDIT_BYTES_MAX, FLOW_CREDIT_BYTES_MAX));
        assert_eq!(pool.left, EGRESS_POOL_BYTES - (FLOW_CREDIT_BYTES_MAX - FLOW_CREDIT_BYTES) as usize);
        window.release(&mut pool);
        assert_eq!(pool.left, EGRESS_POOL_BYTES);
    }

    #[test]
    fn credit_of_a_call_stays_constant() {
        let (mut pool, mut window) = (Pool::new(0), Window::new(&LinkLimits::of(Link::Call)));
        for _ in 0..10 {
            use_up(&mut window, &mut pool);
        }
        assert_eq!((window.size, window.open(), pool.left), (262_144, 262_144, 0));
    }

    #[test]
    fn grants_stay_within_the_pool_and_each_flow_keeps_its_initial_credit() {
        let mut pool = Pool::new(EGRESS_POOL_BYTES);
        let mut windows: Vec<_> = (0..256).map(|_| window()).collect();
        for _ in 0..20 {
            windows.iter_mut().for_each(|window| use_up(window, &mut pool));
        }
        let granted: usize = windows.iter().map(|window| window.size as usize).sum();
        assert!(granted <= EGRESS_POOL_BYTES + 256 * FLOW_CREDIT_BYTES as usize, "{granted}");
        assert!(windows.iter().all(|window| window.open() >= FLOW_CREDIT_BYTES));
    }

    #[test]
    fn each_grant_is_above_the_minimum() {
        let mut pool = Pool::new(EGRESS_POOL_BYTES);
        let mut windows: Vec<_> = (0..256).map(|_| window()).collect();
        for step in 1..200_usize {
            for (number, window) in windows.iter_mut().enumerate() {
                let bytes = (step * number * 37 % 5000).min(window.open() as usize);
                window.received(u32::try_from(bytes).unwrap());
                let grant = window.consumed(bytes, &mut pool);
                assert!(grant.is_none_or(|grant| grant >= GRANT_BYTES_MIN), "{grant:?}");
            }
        }
    }
}
