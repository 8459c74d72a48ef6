// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Counts the bytes that a link's streams have queued in yamux and that yamux has not written yet.
//!
//! yamux queues up to ten pieces per stream. A peer that grants full credit to every stream and then stops reading
//! would make this side buffer all of them. So no stream queues more while the link's backlog is at its limit. yamux
//! writes everything that was queued, even for streams that have ended, so the count stays correct.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

/// Limit of one link's backlog in bytes. The last queued piece may exceed the limit.
const BACKLOG_BYTES_MAX: i64 = 2 * 1024 * 1024;

/// Backlog in bytes at which waiting streams are woken. It is well below the limit, so that not every written piece
/// wakes all streams.
const WAKE_BYTES: i64 = BACKLOG_BYTES_MAX / 2;

/// The backlog of one link, shared by its streams and its driver.
#[derive(Debug, Default)]
pub(crate) struct Backlog(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Negative for a moment if yamux writes a piece before the stream has counted the piece.
    bytes: i64,
    closed: bool,
    last_stream: u64,
    waiting: BTreeMap<u64, Waker>,
}

impl Backlog {
    /// Registers a stream and returns its number.
    pub(crate) fn register(&self) -> u64 {
        let mut state = self.lock();
        state.last_stream += 1;
        state.last_stream
    }

    /// Waits until the stream may queue more, or the link has ended.
    pub(crate) fn poll_capacity(&self, stream: u64, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if state.closed || state.bytes < BACKLOG_BYTES_MAX {
            return Poll::Ready(());
        }
        state.waiting.insert(stream, cx.waker().clone());
        Poll::Pending
    }

    /// Adds bytes that a stream has queued.
    pub(crate) fn queued(&self, bytes: usize) {
        self.lock().bytes += signed(bytes);
    }

    /// Subtracts bytes that yamux has written for any stream.
    pub(crate) fn written(&self, bytes: usize) {
        let mut state = self.lock();
        state.bytes -= signed(bytes);
        if state.bytes <= WAKE_BYTES {
            Self::wake(state);
        }
    }

    /// Forgets the waker of a dropped stream.
    pub(crate) fn deregister(&self, stream: u64) {
        self.lock().waiting.remove(&stream);
    }

    /// Wakes all waiting streams, because the link has ended.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        Self::wake(state);
    }

    fn wake(mut state: MutexGuard<'_, State>) {
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_values().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
