// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Memory that callers share: a bound for all of them together, of which no one of them gets more than half.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::domain::environment::Principal;

/// Memory is counted in pieces of this size, so that what holds none counts, too.
const PIECE_BYTES: usize = 1024;

/// So much memory for all.
#[derive(Debug)]
pub(crate) struct Budget {
    all: Arc<Semaphore>,
    own_pieces: usize,
    /// What is left to each principal that has some, or waits for some.
    own: Mutex<HashMap<Principal, Weak<Semaphore>>>,
}

/// Memory that somebody has until this is dropped.
#[derive(Debug)]
pub(crate) struct Room {
    own: OwnedSemaphorePermit,
    all: OwnedSemaphorePermit,
}

impl Budget {
    /// So many bytes for all, and half of them for each.
    pub(crate) fn new(bytes: usize) -> Self {
        let pieces = bytes / PIECE_BYTES;
        Self { all: Arc::new(Semaphore::new(pieces)), own_pieces: pieces / 2, own: Mutex::default() }
    }

    /// Room for so many bytes of this principal's, or for all that one may have; waits for it.
    ///
    /// Who asks for much has to wait its turn among its own first, where it stands in nobody else's way.
    pub(crate) async fn room(&self, owner: &Principal, bytes: usize) -> Room {
        let pieces = pieces(bytes).min(self.own_pieces);
        let own = take(self.own(owner), pieces).await;
        let all = take(Arc::clone(&self.all), pieces).await;
        Room { own, all }
    }

    fn own(&self, owner: &Principal) -> Arc<Semaphore> {
        // Nothing panics while it holds this lock.
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = own.get(owner).and_then(Weak::upgrade) {
            return found;
        }
        own.retain(|_, left| left.strong_count() > 0);
        let new = Arc::new(Semaphore::new(self.own_pieces));
        own.insert(owner.clone(), Arc::downgrade(&new));
        new
    }
}

impl Room {
    /// Gives back all but what so many bytes take.
    pub(crate) fn shrink(&mut self, bytes: usize) {
        for permit in [&mut self.own, &mut self.all] {
            let surplus = permit.num_permits().saturating_sub(pieces(bytes));
            drop(permit.split(surplus));
        }
    }
}

fn pieces(bytes: usize) -> usize {
    1 + bytes / PIECE_BYTES
}

async fn take(from: Arc<Semaphore>, pieces: usize) -> OwnedSemaphorePermit {
    let pieces = u32::try_from(pieces).unwrap_or(u32::MAX);
    match from.acquire_many_owned(pieces).await {
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
        let budget = Budget::new(8 * PIECE_BYTES);
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
        assert!(budget.own.lock().unwrap().values().all(|left| left.strong_count() == 0));
    }
}
