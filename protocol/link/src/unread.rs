// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Counts the memory that the unread data of a link uses.
//!
//! yamux buffers each received piece of data separately, up to a stream's window. The overhead of a small piece is
//! larger than the piece. While yamux cannot write, it also buffers the data of dropped streams. So a peer that sends
//! single bytes could make this side use 10 MiB per stream. This module counts the memory of all buffered pieces. A
//! peer that exceeds the limit, which an honest peer never reaches, loses the link.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::breach::Breach;

/// Overhead of a small piece, in bytes: yamux's record of the piece, in a queue that grows by doubling.
const PIECE_BYTES: u64 = 64;

/// Pieces of at least this size, in bytes, are counted without overhead.
const SMALL_BYTES: usize = 512;

/// The unread data of one link, counted by its streams and its driver.
#[derive(Debug)]
pub(crate) struct Unread {
    state: Mutex<State>,
    bytes_max: u64,
}

#[derive(Debug, Default)]
struct State {
    streams: HashMap<u32, StreamCount>,
    /// The memory of all streams.
    bytes: u64,
    /// Dropped streams whose data yamux may still buffer.
    dropped: Vec<u32>,
    /// The last piece for an unregistered stream. The piece either opened the stream or arrived after the stream's end.
    unclaimed: Option<(u32, usize)>,
}

/// The data of one stream.
#[derive(Clone, Copy, Debug, Default)]
struct StreamCount {
    arrived: u64,
    read: u64,
    /// Numbers of small pieces before and after `mark`. The older pieces count until all of them are read.
    older: u64,
    newer: u64,
    /// A position in the stream, in bytes from its start.
    mark: u64,
}

impl StreamCount {
    fn bytes(&self) -> u64 {
        self.arrived.saturating_sub(self.read) + (self.older + self.newer) * PIECE_BYTES
    }

    fn arrived(&mut self, bytes: usize) {
        self.arrived += bytes as u64;
        self.newer += u64::from((1..SMALL_BYTES).contains(&bytes));
    }

    fn read(&mut self, bytes: usize) {
        self.read += bytes as u64;
        if self.read >= self.arrived {
            (self.older, self.newer) = (0, 0);
        } else if self.read >= self.mark {
            (self.older, self.newer, self.mark) = (self.newer, 0, self.arrived);
        }
    }
}

impl Unread {
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self { state: Mutex::default(), bytes_max }
    }

    /// Registers a new stream, and counts the piece that opened it, if any.
    pub(crate) fn register(&self, stream: u32) {
        let mut state = self.lock();
        state.dropped.retain(|dropped| *dropped != stream);
        state.remove(stream);
        let first = state.unclaimed.take().filter(|(opened, _)| *opened == stream);
        state.streams.insert(stream, StreamCount::default());
        state.change(stream, |count| count.arrived(first.map_or(0, |(_, bytes)| bytes)));
    }

    /// Counts a piece that arrived for a stream.
    pub(crate) fn arrived(&self, stream: u32, bytes: usize) -> Result<(), Breach> {
        let mut state = self.lock();
        if !state.change(stream, |count| count.arrived(bytes)) {
            state.unclaimed = Some((stream, bytes));
        }
        if state.bytes > self.bytes_max { Err(Breach::Unread { bytes: state.bytes }) } else { Ok(()) }
    }

    /// Subtracts bytes of a stream that were read.
    pub(crate) fn read(&self, stream: u32, bytes: usize) {
        self.lock().change(stream, |count| count.read(bytes));
    }

    /// Marks a stream as dropped. The data of the stream counts until [`Self::release_dropped`].
    pub(crate) fn mark_dropped(&self, stream: u32) {
        self.lock().dropped.push(stream);
    }

    /// Subtracts the data of dropped streams. Must be called only after yamux has released the data.
    pub(crate) fn release_dropped(&self) {
        let mut state = self.lock();
        for stream in std::mem::take(&mut state.dropped) {
            state.remove(stream);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Changes the count of a stream. Returns false if the stream is not registered.
    fn change(&mut self, stream: u32, change: impl FnOnce(&mut StreamCount)) -> bool {
        let Some(count) = self.streams.get_mut(&stream) else { return false };
        self.bytes -= count.bytes();
        change(count);
        self.bytes += count.bytes();
        true
    }

    fn remove(&mut self, stream: u32) {
        self.bytes -= self.streams.remove(&stream).map_or(0, |count| count.bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES_MAX: u64 = 1024 * 1024;

    /// Sends pieces of `bytes` bytes, and returns how many fit before the breach.
    fn until_breach(unread: &Unread, stream: u32, bytes: usize) -> u64 {
        (0..).find(|_| unread.arrived(stream, bytes).is_err()).unwrap()
    }

    #[test]
    fn unread_single_bytes_count_with_their_overhead() {
        let unread = Unread::new(BYTES_MAX);
        unread.register(1);
        unread.register(3);
        for _ in 0..8000 {
            unread.arrived(1, 1).unwrap();
        }
        assert_eq!(until_breach(&unread, 3, 1), BYTES_MAX / 65 - 8000);
        assert_eq!(unread.arrived(3, 1), Err(Breach::Unread { bytes: BYTES_MAX / 65 * 65 + 130 }));
    }

    #[test]
    fn read_data_does_not_accumulate() {
        let unread = Unread::new(BYTES_MAX);
        unread.register(1);
        // The reader always lags a little behind.
        for _ in 0..100 {
            unread.arrived(1, 1).unwrap();
        }
        for _ in 0..1_000_000 {
            unread.arrived(1, 1).unwrap();
            unread.read(1, 1);
        }
    }

    #[test]
    fn unread_small_pieces_still_count_after_a_large_piece_is_read() {
        let unread = Unread::new(BYTES_MAX);
        // The first piece of a stream arrives before the stream is registered.
        unread.arrived(1, 65_536).unwrap();
        unread.register(1);
        for _ in 0..1000 {
            unread.arrived(1, 1).unwrap();
        }
        unread.read(1, 65_536);
        let kept = 1000 * 65;
        assert_eq!(until_breach(&unread, 1, 1), (BYTES_MAX - kept) / 65);
    }

    #[test]
    fn dropped_streams_count_until_yamux_releases_them() {
        let unread = Unread::new(BYTES_MAX);
        unread.register(1);
        unread.mark_dropped(1);
        until_breach(&unread, 1, 60_000);
        unread.release_dropped();
        unread.register(3);
        assert_eq!(until_breach(&unread, 3, 60_000), BYTES_MAX / 60_000);
        // yamux discards data for unknown streams.
        unread.mark_dropped(3);
        unread.release_dropped();
        for _ in 0..1000 {
            unread.arrived(3, 60_000).unwrap();
        }
    }
}
