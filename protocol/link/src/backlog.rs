// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What all streams of a link have handed to yamux and it has not written yet.
//!
//! yamux queues ten pieces of each stream by itself. A peer that grants every stream all the credit there is, and then
//! stops reading, would make this side keep them all; so a stream accepts no more while the link has this much waiting.
//! yamux writes all that it was ever handed, streams that are over included, so the count stays true.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

/// Waiting bytes of one link, at most; a stream's last piece may go beyond.
const WAITING_BYTES_MAX: i64 = 2 * 1024 * 1024;

/// Streams that wait are woken once no more than this is left, in bytes: not for each piece that goes out.
const WAKE_BYTES: i64 = WAITING_BYTES_MAX / 2;

/// The count, shared by a link's streams and its driver.
#[derive(Debug, Default)]
pub(crate) struct Backlog(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Below zero for a moment when a piece is written before its stream has counted it.
    bytes: i64,
    closed: bool,
    streams: u64,
    waiting: BTreeMap<u64, Waker>,
}

impl Backlog {
    /// A number for a stream.
    pub(crate) fn enter(&self) -> u64 {
        let mut state = self.lock();
        state.streams += 1;
        state.streams
    }

    /// Ready when a stream may hand over more, or the link has ended.
    pub(crate) fn poll_room(&self, stream: u64, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if state.closed || state.bytes < WAITING_BYTES_MAX {
            return Poll::Ready(());
        }
        state.waiting.insert(stream, cx.waker().clone());
        Poll::Pending
    }

    /// A stream has handed over so many bytes.
    pub(crate) fn handed(&self, bytes: usize) {
        self.lock().bytes += signed(bytes);
    }

    /// So many bytes of any stream have been written.
    pub(crate) fn written(&self, bytes: usize) {
        let mut state = self.lock();
        state.bytes -= signed(bytes);
        if state.bytes <= WAKE_BYTES {
            Self::wake(state);
        }
    }

    /// A stream is gone.
    pub(crate) fn leave(&self, stream: u64) {
        self.lock().waiting.remove(&stream);
    }

    /// The link has ended: nobody waits for it any more.
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
