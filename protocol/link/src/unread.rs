// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What has arrived on a link's streams and nobody has read yet.
//!
//! yamux keeps each piece of data by itself, with more around it than a small one has in it, up to a stream's window;
//! of streams that are over, too, as long as nothing can be written. So a peer could make this side keep 10 MiB a
//! stream by sending single bytes. Here all that is kept is counted, and a peer that exceeds what honest ones come to
//! loses the link.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::rules::Breach;

/// What a small piece costs beside its bytes: yamux's record of it, in a queue that grows by doubling.
const PIECE_BYTES: u64 = 64;

/// From this size on, in bytes, what is around a piece does not matter.
const SMALL_BYTES: usize = 512;

/// The count, shared by a link's streams and its driver.
#[derive(Debug)]
pub(crate) struct Unread {
    state: Mutex<State>,
    bytes_max: u64,
}

#[derive(Debug, Default)]
struct State {
    streams: HashMap<u32, Pieces>,
    /// What all of them cost.
    bytes: u64,
    /// Those that were dropped, and that yamux may still have.
    gone: Vec<u32>,
    /// The last piece for a stream that is not among them: it has opened one, or is for one that is no more.
    stray: Option<(u32, usize)>,
}

/// What has come over one stream.
#[derive(Clone, Copy, Debug, Default)]
struct Pieces {
    arrived: u64,
    read: u64,
    /// Small pieces up to `mark` and behind it; the former count until all of them are read.
    older: u64,
    newer: u64,
    mark: u64,
}

impl Pieces {
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

    /// A stream begins; a piece may have come with it.
    pub(crate) fn enter(&self, stream: u32) {
        let mut state = self.lock();
        state.gone.retain(|gone| *gone != stream);
        state.remove(stream);
        let first = state.stray.take().filter(|(opened, _)| *opened == stream);
        state.streams.insert(stream, Pieces::default());
        state.change(stream, |pieces| pieces.arrived(first.map_or(0, |(_, bytes)| bytes)));
    }

    /// A piece of so many bytes has arrived for a stream.
    pub(crate) fn arrived(&self, stream: u32, bytes: usize) -> Result<(), Breach> {
        let mut state = self.lock();
        if !state.change(stream, |pieces| pieces.arrived(bytes)) {
            state.stray = Some((stream, bytes));
        }
        if state.bytes > self.bytes_max { Err(Breach::Unread { bytes: state.bytes }) } else { Ok(()) }
    }

    /// So many bytes of a stream were read.
    pub(crate) fn read(&self, stream: u32, bytes: usize) {
        self.lock().change(stream, |pieces| pieces.read(bytes));
    }

    /// A stream was dropped.
    pub(crate) fn leave(&self, stream: u32) {
        self.lock().gone.push(stream);
    }

    /// yamux keeps nothing any more of what was dropped.
    pub(crate) fn forget_gone(&self) {
        let mut state = self.lock();
        for stream in std::mem::take(&mut state.gone) {
            state.remove(stream);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// False if there is no such stream.
    fn change(&mut self, stream: u32, change: impl FnOnce(&mut Pieces)) -> bool {
        let Some(pieces) = self.streams.get_mut(&stream) else { return false };
        self.bytes -= pieces.bytes();
        change(pieces);
        self.bytes += pieces.bytes();
        true
    }

    fn remove(&mut self, stream: u32) {
        self.bytes -= self.streams.remove(&stream).map_or(0, |pieces| pieces.bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES_MAX: u64 = 1024 * 1024;

    /// Pieces of so many bytes until the link ends.
    fn until_breach(unread: &Unread, stream: u32, bytes: usize) -> u64 {
        (0..).find(|_| unread.arrived(stream, bytes).is_err()).unwrap()
    }

    #[test]
    fn single_bytes_that_nobody_reads_cost_what_is_kept_of_them() {
        let unread = Unread::new(BYTES_MAX);
        unread.enter(1);
        unread.enter(3);
        for _ in 0..8000 {
            unread.arrived(1, 1).unwrap();
        }
        assert_eq!(until_breach(&unread, 3, 1), BYTES_MAX / 65 - 8000);
        assert_eq!(unread.arrived(3, 1), Err(Breach::Unread { bytes: BYTES_MAX / 65 * 65 + 130 }));
    }

    #[test]
    fn what_is_read_may_come_in_pieces_of_any_size_for_ever() {
        let unread = Unread::new(BYTES_MAX);
        unread.enter(1);
        // The reader is always a little behind, and never done.
        for _ in 0..100 {
            unread.arrived(1, 1).unwrap();
        }
        for _ in 0..1_000_000 {
            unread.arrived(1, 1).unwrap();
            unread.read(1, 1);
        }
    }

    #[test]
    fn a_reader_that_stops_within_a_large_piece_makes_no_room_for_small_ones() {
        let unread = Unread::new(BYTES_MAX);
        // The first piece of a stream is there before the stream is.
        unread.arrived(1, 65_536).unwrap();
        unread.enter(1);
        for _ in 0..1000 {
            unread.arrived(1, 1).unwrap();
        }
        unread.read(1, 65_536);
        let kept = 1000 * 65;
        assert_eq!(until_breach(&unread, 1, 1), (BYTES_MAX - kept) / 65);
    }

    #[test]
    fn what_was_dropped_counts_until_yamux_has_let_it_go() {
        let unread = Unread::new(BYTES_MAX);
        unread.enter(1);
        unread.leave(1);
        until_breach(&unread, 1, 60_000);
        unread.forget_gone();
        unread.enter(3);
        assert_eq!(until_breach(&unread, 3, 60_000), BYTES_MAX / 60_000);
        // What is for nobody is kept by nobody.
        unread.leave(3);
        unread.forget_gone();
        for _ in 0..1000 {
            unread.arrived(3, 60_000).unwrap();
        }
    }
}
