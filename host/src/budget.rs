// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Memory that callers share: a bound for all of them together, of which no one of them gets more than half. A little
//! is each one's own, so that small things find room whatever others hold.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{domain::principal::Principal, mutex::lock};

/// Memory is counted in pieces of this size, so that what holds none counts, too.
const PIECE_BYTES: usize = 1024;

/// What each principal has besides: both outputs of a command, or some small bodies.
const OWN_BYTES: usize = 1024 * 1024 + 2 * PIECE_BYTES;

/// So much memory for all, and a little for each.
#[derive(Debug)]
pub(crate) struct Budget {
    all: Arc<Semaphore>,
    /// How much of it one principal may have.
    share_pieces: usize,
    /// What is each principal's own.
    own_pieces: usize,
    /// What is left to each principal that has some, or waits for some.
    left: Mutex<HashMap<Principal, Weak<Left>>>,
}

/// What is left to a principal.
#[derive(Debug)]
struct Left {
    own: Arc<Semaphore>,
    share: Arc<Semaphore>,
}

/// Memory that somebody has until this is dropped.
#[derive(Debug)]
pub(crate) struct Room {
    /// Of the principal's own, or of its share and of all.
    permits: Vec<OwnedSemaphorePermit>,
    /// Others look there for what is left.
    _left: Arc<Left>,
}

impl Budget {
    /// So many bytes for all, of which half are for each; what is each one's own is not of them.
    pub(crate) fn new(bytes: usize) -> Self {
        let (pieces, own_pieces) = (bytes / PIECE_BYTES, OWN_BYTES / PIECE_BYTES);
        Self { all: Arc::new(Semaphore::new(pieces)), share_pieces: pieces / 2, own_pieces, left: Mutex::default() }
    }

    /// Room for so many bytes of this principal's, or for all that one may have; waits for it.
    ///
    /// Who asks for much has to wait its turn among its own first, where it stands in nobody else's way.
    pub(crate) async fn room(&self, owner: &Principal, bytes: usize) -> Room {
        let pieces = pieces(bytes).min(self.share_pieces);
        let left = self.left(owner);
        if let Some(own) = try_take(&left.own, pieces) {
            return Room { permits: vec![own], _left: left };
        }
        let share = take(&left.share, pieces).await;
        let all = take(&self.all, pieces).await;
        Room { permits: vec![share, all], _left: left }
    }

    fn left(&self, owner: &Principal) -> Arc<Left> {
        let mut all = lock(&self.left);
        if let Some(found) = all.get(owner).and_then(Weak::upgrade) {
            return found;
        }
        all.retain(|_, left| left.strong_count() > 0);
        let [own, share] = [self.own_pieces, self.share_pieces].map(|pieces| Arc::new(Semaphore::new(pieces)));
        let new = Arc::new(Left { own, share });
        all.insert(owner.clone(), Arc::downgrade(&new));
        new
    }
}

impl Room {
    /// Gives back all but what so many bytes take.
    pub(crate) fn shrink(&mut self, bytes: usize) {
        for permit in &mut self.permits {
            let surplus = permit.num_permits().saturating_sub(pieces(bytes));
            drop(permit.split(surplus));
        }
    }
}

fn pieces(bytes: usize) -> usize {
    1 + bytes / PIECE_BYTES
}

fn try_take(from: &Arc<Semaphore>, pieces: usize) -> Option<OwnedSemaphorePermit> {
    Arc::clone(from).try_acquire_many_owned(u32::try_from(pieces).ok()?).ok()
}

async fn take(from: &Arc<Semaphore>, pieces: usize) -> OwnedSemaphorePermit {
    let pieces = u32::try_from(pieces).unwrap_or(u32::MAX);
    match Arc::clone(from).acquire_many_owned(pieces).await {
        Ok(permit) => permit,
        // No budget is ever closed.
        Err(_closed) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_caller_gets_half_and_others_the_rest() {
        let budget = Budget { own_pieces: 0, ..Budget::new(8 * PIECE_BYTES) };
        let [ada, bob] = ["ada", "bob"].map(|name| name.parse::<Principal>().unwrap());
        let room = async |owner, bytes| timeout(Duration::from_secs(1), budget.room(owner, bytes)).await.ok();
        let mut first = room(&ada, 2 * PIECE_BYTES).await.unwrap();
        // It is cut to what one may have, and three of four are taken.
        assert!(room(&ada, 100 * PIECE_BYTES).await.is_none());
        let other = room(&bob, 100 * PIECE_BYTES).await.unwrap();
        assert!(room(&ada, 0).await.is_some());
        first.shrink(0);
        let more = room(&ada, 2 * PIECE_BYTES).await.unwrap();
        assert!(room(&ada, 0).await.is_none());
        drop((first, more, other));
        assert_eq!(budget.all.available_permits(), 8);
        drop(room(&ada, 0).await);
        assert!(budget.left.lock().unwrap().values().all(|left| left.strong_count() == 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_small_finds_room_whatever_others_hold() {
        let budget = Budget { own_pieces: 2, ..Budget::new(8 * PIECE_BYTES) };
        let [ada, bob, eve] = ["ada", "bob", "eve"].map(|name| name.parse::<Principal>().unwrap());
        let room = async |owner, bytes| timeout(Duration::from_secs(1), budget.room(owner, bytes)).await.ok();
        let held = (room(&ada, 100 * PIECE_BYTES).await.unwrap(), room(&bob, 100 * PIECE_BYTES).await.unwrap());
        let mut small = room(&eve, PIECE_BYTES).await.unwrap();
        assert!(room(&eve, 0).await.is_none());
        small.shrink(0);
        assert!(room(&eve, 0).await.is_some());
        assert!(room(&eve, 2 * PIECE_BYTES).await.is_none());
        drop(held);
        assert!(room(&eve, 2 * PIECE_BYTES).await.is_some());
    }
}
