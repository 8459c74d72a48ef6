// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The credit that a side grants to its peer on a flow. Each flow begins with a little credit. Flows that use their
//! credit borrow more from a pool that all flows of the link share.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use waggle_protocol::egress::{FLOW_CREDIT_BYTES, FLOW_CREDIT_BYTES_MAX};

use crate::limits::EGRESS_POOL_BYTES;

/// Part of the pool that flows cannot borrow, in bytes. When less than twice this amount is left in the pool, flows
/// return borrowed credit.
const SCARCE_BYTES: usize = EGRESS_POOL_BYTES / 8;

/// The credit that the flows of one link can borrow in addition to their initial credit.
#[derive(Debug)]
pub struct GrantPool(AtomicUsize);

impl Default for GrantPool {
    fn default() -> Self {
        Self(AtomicUsize::new(EGRESS_POOL_BYTES))
    }
}

impl GrantPool {
    /// Returns the number of bytes that are left in the pool.
    pub fn left(&self) -> usize {
        self.0.load(Relaxed)
    }

    fn borrow(&self, bytes: u32) -> bool {
        let bytes = bytes as usize;
        let above = |left: usize| left.checked_sub(bytes).filter(|rest| *rest >= SCARCE_BYTES);
        self.0.fetch_update(Relaxed, Relaxed, above).is_ok()
    }

    fn put_back(&self, bytes: u32) {
        self.0.fetch_add(bytes as usize, Relaxed);
    }
}

/// The credit that one flow has granted to its peer.
#[derive(Debug)]
pub(super) struct Window<'a> {
    pool: &'a GrantPool,
    /// Maximum number of the peer's bytes that are in flight or buffered on this side.
    size: u32,
    /// Bytes that the peer may still send.
    open: u32,
    /// Bytes that were written to the connection and for which no new credit was granted yet.
    consumed: u32,
}

impl<'a> Window<'a> {
    pub(super) fn new(pool: &'a GrantPool) -> Self {
        Self { pool, size: FLOW_CREDIT_BYTES, open: FLOW_CREDIT_BYTES, consumed: 0 }
    }

    /// Returns the number of bytes that the peer may still send.
    pub(super) fn open(&self) -> u32 {
        self.open
    }

    /// Uses up credit for received data, which must not exceed [`Self::open`].
    pub(super) fn received(&mut self, bytes: u32) {
        self.open = self.open.saturating_sub(bytes);
    }

    /// Counts bytes that were written to the connection.
    pub(super) fn consumed(&mut self, bytes: usize) {
        self.consumed = self.consumed.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    /// Returns the grant that is due, if any. The caller must send it to the peer. If the caller waits between calls,
    /// several grants become one.
    pub(super) fn grant(&mut self) -> Option<u32> {
        if self.consumed < self.size / 2 {
            return None;
        }
        let more = self.size.min(FLOW_CREDIT_BYTES_MAX - self.size);
        let mut grant = self.consumed;
        if more > 0 && self.pool.borrow(more) {
            self.size += more;
            grant += more;
        } else if self.pool.left() < SCARCE_BYTES * 2 {
            let less = (self.size - FLOW_CREDIT_BYTES).min(grant / 2);
            self.pool.put_back(less);
            self.size -= less;
            grant -= less;
        }
        self.consumed = 0;
        self.open += grant;
        Some(grant)
    }
}

impl Drop for Window<'_> {
    fn drop(&mut self) {
        self.pool.put_back(self.size - FLOW_CREDIT_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn use_up(window: &mut Window<'_>) {
        let open = window.open();
        window.received(open);
        window.consumed(open as usize);
        window.grant();
    }

    #[test]
    fn window_grows_with_use_and_returns_credit_to_the_pool() {
        let pool = GrantPool::default();
        let mut window = Window::new(&pool);
        for _ in 0..10 {
            use_up(&mut window);
        }
        assert_eq!((window.size, window.open()), (FLOW_CREDIT_BYTES_MAX, FLOW_CREDIT_BYTES_MAX));
        assert_eq!(pool.left(), EGRESS_POOL_BYTES - (FLOW_CREDIT_BYTES_MAX - FLOW_CREDIT_BYTES) as usize);
        drop(window);
        assert_eq!(pool.left(), EGRESS_POOL_BYTES);
    }

    #[test]
    fn delayed_grants_become_one() {
        let pool = GrantPool::default();
        let mut window = Window::new(&pool);
        for _ in 0..4 {
            window.received(FLOW_CREDIT_BYTES / 4);
            window.consumed((FLOW_CREDIT_BYTES / 4) as usize);
        }
        assert_eq!(window.open(), 0);
        assert_eq!(window.grant(), Some(2 * FLOW_CREDIT_BYTES));
        assert_eq!((window.open(), window.grant()), (2 * FLOW_CREDIT_BYTES, None));
    }

    #[test]
    fn grants_stay_within_the_pool_and_each_flow_keeps_its_initial_credit() {
        let pool = GrantPool::default();
        let mut windows: Vec<_> = (0..256).map(|_| Window::new(&pool)).collect();
        for _ in 0..20 {
            windows.iter_mut().for_each(use_up);
        }
        let granted: usize = windows.iter().map(|window| window.size as usize).sum();
        assert!(granted <= EGRESS_POOL_BYTES + 256 * FLOW_CREDIT_BYTES as usize, "{granted}");
        assert!(windows.iter().all(|window| window.open() >= FLOW_CREDIT_BYTES));
    }
}
