// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! A memory budget that callers share: a global limit, of which one principal may use at most half.
//!
//! Each principal also has a small private reserve outside that limit. Small requests therefore succeed even when other
//! principals use up the shared memory.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use waggle_shared::mutex::lock;

use crate::domain::principal::Principal;

/// The unit in which memory is counted. Every reservation is at least one unit, so empty requests count as well.
const UNIT_BYTES: usize = 1024;

/// The memory limits of all principals together and of each single principal.
#[derive(Debug)]
pub(crate) struct Budget {
    shared: Arc<Semaphore>,
    /// Maximum number of units of `shared` that one principal may reserve.
    share_units: usize,
    private_units: usize,
    /// The quotas of principals that have a reservation or wait for one.
    quotas: Mutex<HashMap<Principal, Weak<Quota>>>,
}

/// The memory that one principal may still reserve.
#[derive(Debug)]
struct Quota {
    private: Arc<Semaphore>,
    share: Arc<Semaphore>,
}

/// Reserved memory of one principal; dropping the reservation releases the memory.
#[derive(Debug)]
pub(crate) struct Reservation {
    parts: Vec<Part>,
    /// Kept alive by its reservations: the budget's map only has a weak reference to the quota.
    quota: Arc<Quota>,
}

/// Either one permit of the private reserve, or one of the principal's share and one of the shared memory.
type Part = Vec<OwnedSemaphorePermit>;

impl Budget {
    /// Creates a budget with `bytes` of shared memory. The private reserves are not part of `bytes`; each of them is
    /// enough for a reservation of `private_bytes`.
    pub(crate) fn new(bytes: usize, private_bytes: usize) -> Self {
        let (units, private_units) = (bytes / UNIT_BYTES, units(private_bytes));
        Self {
            shared: Arc::new(Semaphore::new(units)),
            share_units: units / 2,
            private_units,
            quotas: Mutex::default(),
        }
    }

    /// Waits until the principal can reserve `bytes`. A request above the principal's share is reduced to that share.
    ///
    /// A request that does not fit the private reserve waits for the principal's own share first. During this wait, the
    /// request does not block other principals.
    pub(crate) async fn reserve(&self, owner: &Principal, bytes: usize) -> Reservation {
        let mut reservation = Reservation { parts: Vec::new(), quota: self.quota(owner) };
        self.grow(&mut reservation, bytes).await;
        reservation
    }

    /// Waits until a reservation has at least `bytes`, with the same rules as for [`Budget::reserve`].
    pub(crate) async fn grow(&self, reservation: &mut Reservation, bytes: usize) {
        let more = units(bytes).min(self.share_units).saturating_sub(reservation.units());
        if more > 0 {
            let part = self.acquire(&reservation.quota, u32::try_from(more).unwrap_or(u32::MAX)).await;
            reservation.parts.push(part);
        }
    }

    async fn acquire(&self, quota: &Quota, units: u32) -> Part {
        if let Ok(private) = Arc::clone(&quota.private).try_acquire_many_owned(units) {
            return vec![private];
        }
        let share = acquire(&quota.share, units).await;
        let shared = acquire(&self.shared, units).await;
        vec![share, shared]
    }

    fn quota(&self, owner: &Principal) -> Arc<Quota> {
        let mut quotas = lock(&self.quotas);
        if let Some(found) = quotas.get(owner).and_then(Weak::upgrade) {
            return found;
        }
        quotas.retain(|_, quota| quota.strong_count() > 0);
        let [private, share] = [self.private_units, self.share_units].map(|units| Arc::new(Semaphore::new(units)));
        let new = Arc::new(Quota { private, share });
        quotas.insert(owner.clone(), Arc::downgrade(&new));
        new
    }
}

impl Reservation {
    /// Returns the reserved size.
    pub(crate) fn bytes(&self) -> usize {
        self.units() * UNIT_BYTES
    }

    /// Releases the reserved memory beyond `bytes`.
    pub(crate) fn shrink(&mut self, bytes: usize) {
        let mut surplus = self.units().saturating_sub(units(bytes));
        for part in self.parts.iter_mut().rev() {
            let released = surplus.min(part_units(part));
            part.iter_mut().for_each(|permit| drop(permit.split(released)));
            surplus -= released;
        }
    }

    fn units(&self) -> usize {
        self.parts.iter().map(part_units).sum()
    }
}

fn part_units(part: &Part) -> usize {
    part.first().map_or(0, OwnedSemaphorePermit::num_permits)
}

fn units(bytes: usize) -> usize {
    1 + bytes / UNIT_BYTES
}

async fn acquire(from: &Arc<Semaphore>, units: u32) -> OwnedSemaphorePermit {
    match Arc::clone(from).acquire_many_owned(units).await {
        Ok(permit) => permit,
        // A budget never closes its semaphores.
        Err(_closed) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_principal_gets_half_and_others_the_rest() {
        let budget = Budget { private_units: 0, ..Budget::new(8 * UNIT_BYTES, 0) };
        let [ada, bob] = ["ada", "bob"].map(|name| name.parse::<Principal>().unwrap());
        let reserve = async |owner, bytes| timeout(Duration::from_secs(1), budget.reserve(owner, bytes)).await.ok();
        let mut first = reserve(&ada, 2 * UNIT_BYTES).await.unwrap();
        // The request is capped at the share of four units, three of which are taken.
        assert!(reserve(&ada, 100 * UNIT_BYTES).await.is_none());
        let other = reserve(&bob, 100 * UNIT_BYTES).await.unwrap();
        assert!(reserve(&ada, 0).await.is_some());
        first.shrink(0);
        let more = reserve(&ada, 2 * UNIT_BYTES).await.unwrap();
        assert!(reserve(&ada, 0).await.is_none());
        drop((first, more, other));
        assert_eq!(budget.shared.available_permits(), 8);
        drop(reserve(&ada, 0).await);
        assert!(budget.quotas.lock().unwrap().values().all(|quota| quota.strong_count() == 0));
    }

    #[tokio::test(start_paused = true)]
    async fn private_reserve_serves_small_requests_when_the_budget_is_full() {
        let budget = Budget { private_units: 2, ..Budget::new(8 * UNIT_BYTES, 0) };
        let [ada, bob, eve] = ["ada", "bob", "eve"].map(|name| name.parse::<Principal>().unwrap());
        let reserve = async |owner, bytes| timeout(Duration::from_secs(1), budget.reserve(owner, bytes)).await.ok();
        let held = (reserve(&ada, 100 * UNIT_BYTES).await.unwrap(), reserve(&bob, 100 * UNIT_BYTES).await.unwrap());
        let own = reserve(&ada, UNIT_BYTES).await.unwrap();
        assert!(reserve(&ada, 0).await.is_none());
        let mut small = reserve(&eve, UNIT_BYTES).await.unwrap();
        assert!(reserve(&eve, 0).await.is_none());
        small.shrink(0);
        assert!(reserve(&eve, 0).await.is_some());
        assert!(reserve(&eve, 2 * UNIT_BYTES).await.is_none());
        drop((held, own));
        assert!(reserve(&eve, 2 * UNIT_BYTES).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn reservation_grows_from_the_private_reserve_or_from_the_share() {
        let budget = Budget { private_units: 2, ..Budget::new(8 * UNIT_BYTES, 0) };
        let ada = "ada".parse().unwrap();
        let mut one = budget.reserve(&ada, 0).await;
        budget.grow(&mut one, UNIT_BYTES).await;
        assert_eq!((one.bytes(), budget.shared.available_permits()), (2 * UNIT_BYTES, 8));
        budget.grow(&mut one, 3 * UNIT_BYTES).await;
        budget.grow(&mut one, UNIT_BYTES).await;
        assert_eq!((one.bytes(), budget.shared.available_permits()), (4 * UNIT_BYTES, 6));
        budget.grow(&mut one, 100 * UNIT_BYTES).await;
        assert_eq!(one.bytes(), 4 * UNIT_BYTES, "at most the share");
        let mut other = budget.reserve(&ada, UNIT_BYTES).await;
        let grown = timeout(Duration::from_secs(1), budget.grow(&mut other, 2 * UNIT_BYTES)).await;
        assert!(grown.is_err(), "the share is used up");
        assert_eq!((other.bytes(), budget.shared.available_permits()), (2 * UNIT_BYTES, 4));
        one.shrink(0);
        assert_eq!((one.bytes(), budget.shared.available_permits()), (UNIT_BYTES, 6));
        budget.grow(&mut other, 2 * UNIT_BYTES).await;
        drop((one, other));
        assert_eq!(budget.shared.available_permits(), 8);
    }
}
