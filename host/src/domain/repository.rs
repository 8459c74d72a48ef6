// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The environments of the server, in memory, and the slots that limit the number of machines.
//!
//! The repository returns copies; changing a copy does not change the repository. A slot represents one machine. The
//! slot is reserved before anything is created for the machine, and dropping the slot frees it. The count is therefore
//! exact, in total and for each owner, and a failed create occupies no slot. A failed environment has no slot, but
//! stays visible until it is destroyed.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex},
};

use waggle_shared::mutex::lock;

use super::{
    environment::Environment, environment_id::EnvironmentId, lifecycle::State, principal::Principal,
    shared_limit::SharedLimit,
};

/// Maximum number of destroyed environments that the repository remembers. For these, the error of a later call says
/// why the environment was destroyed.
pub const DESTROYED_REMEMBERED_MAX: usize = 256;

/// The environments of all owners, oldest first.
#[derive(Debug)]
pub struct Repository {
    inner: Mutex<Inner>,
    slots: Arc<Slots>,
}

#[derive(Debug, Default)]
struct Inner {
    environments: Vec<Environment>,
    destroyed: VecDeque<Destroyed>,
}

impl Inner {
    fn remember(&mut self, destroyed: Destroyed) {
        self.destroyed.push_back(destroyed);
        if self.destroyed.len() > DESTROYED_REMEMBERED_MAX
            && let Some(surplus) = surplus(self.destroyed.iter().map(|destroyed| &destroyed.owner))
        {
            self.destroyed.remove(surplus);
        }
    }
}

#[derive(Clone, Debug)]
struct Destroyed {
    id: EnvironmentId,
    owner: Principal,
    reason: DestroyReason,
}

/// Why an environment was destroyed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DestroyReason {
    /// A client requested the destruction.
    Requested,
    /// The environment reached its idle timeout.
    Idle,
    /// The machine did not start, or the client left before the machine was ready.
    NeverReady,
    /// Evicted: only the newest failed environments are kept.
    Failed,
    /// The server shut down.
    Shutdown,
    /// The server shut down, and has left the suspended environment to the next server.
    Suspended,
    /// The server shut down, and could not suspend the environment.
    Unsuspended,
    /// The server that ran the environment ended without shutting down.
    Lost,
    /// The environment was suspended for longer than the server keeps its state.
    Expired,
}

/// The result of looking up an id.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Found {
    /// A copy of the environment.
    Known(Box<Environment>),
    /// The environment was destroyed recently.
    Destroyed(DestroyReason),
    /// The owner has no environment with this id.
    Unknown,
}

impl Repository {
    /// Creates an empty repository with a limit on its slots.
    #[must_use]
    pub fn new(limit: SharedLimit) -> Self {
        let slots = Arc::new(Slots { limit, taken: Mutex::default() });
        Self { inner: Mutex::default(), slots }
    }

    /// Reserves a slot for one machine of this owner, one of so many `callers`.
    ///
    /// # Errors
    /// [`CapacityFault`] if all slots of the owner, or of all callers, are taken.
    pub fn reserve(&self, owner: &Principal, callers: usize) -> Result<Slot, CapacityFault> {
        let SharedLimit { all, .. } = self.slots.limit;
        let share = self.slots.limit.share(callers);
        let mut taken = lock(&self.slots.taken);
        let own = taken.get(owner).copied().unwrap_or_default();
        // The smaller limit comes first: a caller cannot free the slots of others.
        if share < all && own >= share {
            return Err(CapacityFault::Share { share, all });
        }
        if taken.values().sum::<usize>() >= all {
            return Err(CapacityFault::Server { all });
        }
        taken.insert(owner.clone(), own + 1);
        Ok(Slot { slots: Arc::clone(&self.slots), owner: owner.clone() })
    }

    /// Returns the limit on the slots.
    #[must_use]
    pub fn limit(&self) -> SharedLimit {
        self.slots.limit
    }

    /// Takes a slot for an environment that an earlier server had, even if all slots are taken.
    pub fn occupy(&self, owner: &Principal) -> Slot {
        *lock(&self.slots.taken).entry(owner.clone()).or_default() += 1;
        Slot { slots: Arc::clone(&self.slots), owner: owner.clone() }
    }

    /// Adds or replaces an environment.
    pub fn save(&self, environment: Environment) {
        let mut inner = lock(&self.inner);
        match inner.environments.iter_mut().find(|known| known.id == environment.id) {
            Some(known) => *known = environment,
            None => inner.environments.push(environment),
        }
    }

    /// Removes an environment, and remembers its id, its owner and the reason.
    pub fn remove(&self, id: EnvironmentId, reason: DestroyReason) {
        let mut inner = lock(&self.inner);
        let Some(position) = inner.environments.iter().position(|known| known.id == id) else { return };
        let Environment { owner, .. } = inner.environments.remove(position);
        inner.remember(Destroyed { id, owner, reason });
    }

    /// Remembers an environment that an earlier server had.
    pub fn remember_destroyed(&self, id: EnvironmentId, owner: Principal, reason: DestroyReason) {
        lock(&self.inner).remember(Destroyed { id, owner, reason });
    }

    /// Looks up an id among an owner's environments.
    #[must_use]
    pub fn find(&self, owner: &Principal, id: EnvironmentId) -> Found {
        let inner = lock(&self.inner);
        if let Some(known) = inner.environments.iter().find(|known| known.id == id && known.owner == *owner) {
            return Found::Known(Box::new(known.clone()));
        }
        let destroyed = inner.destroyed.iter().find(|destroyed| destroyed.id == id && destroyed.owner == *owner);
        destroyed.map_or(Found::Unknown, |destroyed| Found::Destroyed(destroyed.reason))
    }

    /// Returns an owner's environments, oldest first.
    #[must_use]
    pub fn list(&self, owner: &Principal) -> Vec<Environment> {
        lock(&self.inner).environments.iter().filter(|known| known.owner == *owner).cloned().collect()
    }

    /// Returns the environments of all owners, oldest first.
    #[must_use]
    pub fn all(&self) -> Vec<Environment> {
        lock(&self.inner).environments.clone()
    }

    /// Returns a failed environment if there are more failed environments than slots: the oldest one of the owner that
    /// has the most.
    #[must_use]
    pub fn surplus_failed(&self) -> Option<EnvironmentId> {
        let inner = lock(&self.inner);
        let failed: Vec<_> = inner.environments.iter().filter(|known| known.state() == State::Error).collect();
        if failed.len() <= self.slots.limit.all {
            return None;
        }
        surplus(failed.iter().map(|known| &known.owner)).and_then(|place| failed.get(place)).map(|known| known.id)
    }
}

/// Returns the place of the entry to drop from a list with these owners, oldest first: the oldest entry of the owner
/// that has the most. One caller therefore cannot displace the entries of others.
#[must_use]
pub fn surplus<'a>(owners: impl Iterator<Item = &'a Principal> + Clone) -> Option<usize> {
    let mut counts = HashMap::<_, usize>::new();
    owners.clone().for_each(|owner| *counts.entry(owner).or_default() += 1);
    let most = counts.values().copied().max()?;
    owners.into_iter().position(|owner| counts.get(owner) == Some(&most))
}

/// The reservation of a slot for one machine; dropping the reservation frees the slot.
#[derive(Debug)]
pub struct Slot {
    slots: Arc<Slots>,
    owner: Principal,
}

#[derive(Debug)]
struct Slots {
    limit: SharedLimit,
    /// The number of slots of each owner that has some.
    taken: Mutex<HashMap<Principal, usize>>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = lock(&self.slots.taken);
        if let Some(own) = taken.get_mut(&self.owner) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                taken.remove(&self.owner);
            }
        }
    }
}

/// All slots that a caller may take are taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CapacityFault {
    /// All slots of the server are taken.
    #[error(
        "this server has reached its maximum of {all} environments, suspended ones included; destroy one with \
         destroy_environment, or retry when another one has ended"
    )]
    Server { all: usize },
    /// All slots of one caller are taken.
    #[error(
        "you have reached your own maximum of {share} environments, of {all} for all callers of this server, suspended \
         ones included; destroy one with destroy_environment, or retry when another one has ended"
    )]
    Share { share: usize, all: usize },
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant, SystemTime};

    use super::*;
    use waggle_images::reference::PullRights;

    use crate::domain::{
        environment::{EnvironmentName, NewEnvironment},
        lifecycle::Event,
        machine_size::MachineSize,
        runtime::Runtime,
        variables::Variables,
    };

    fn environment(name: &str) -> Environment {
        environment_of(Principal::anonymous(), name)
    }

    fn environment_of(owner: Principal, name: &str) -> Environment {
        let new = NewEnvironment {
            owner,
            name: Some(EnvironmentName::parse(name).unwrap()),
            runtime: Runtime::Shell,
            image: "debian".parse().unwrap(),
            pull_rights: PullRights::Operator,
            size: MachineSize { cpus: 1, memory_mib: 512, disk_mib: 4096 },
            variables: Variables::default(),
            idle_timeout: Duration::from_secs(60),
            network: None,
        };
        Environment::create(EnvironmentId::random(), new, SystemTime::UNIX_EPOCH, Instant::now())
    }

    fn repository(all: usize) -> Repository {
        Repository::new(SharedLimit { all, per_caller: None })
    }

    #[test]
    fn capacity_is_exact_under_contention() {
        let repository = repository(10);
        let [ada, bob] = ["ada", "bob"].map(|name| name.parse::<Principal>().unwrap());
        for (callers, all_of_ada, fault) in
            [(1, 10, CapacityFault::Server { all: 10 }), (2, 5, CapacityFault::Share { share: 5, all: 10 })]
        {
            let taken: Vec<_> = std::thread::scope(|scope| {
                let reserve = || (0..10).filter_map(|_| repository.reserve(&ada, callers).ok()).collect::<Vec<_>>();
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(reserve)).collect();
                threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
            });
            assert_eq!(taken.len(), all_of_ada);
            assert_eq!(repository.reserve(&ada, callers).unwrap_err(), fault);
            let others: Vec<_> = (0..11).filter_map(|_| repository.reserve(&bob, callers).ok()).collect();
            assert_eq!(others.len(), 10 - all_of_ada);
        }
        let eve = "eve".parse().unwrap();
        let taken = [&ada, &bob].map(|owner| (0..5).map(|_| repository.reserve(owner, 3).unwrap()).collect::<Vec<_>>());
        assert_eq!(repository.reserve(&eve, 3).unwrap_err(), CapacityFault::Server { all: 10 });
        drop(taken);
        assert!(repository.slots.taken.lock().unwrap().is_empty());
    }

    #[test]
    fn environments_of_an_earlier_server_count_even_beyond_the_limit() {
        let repository = repository(2);
        let owner = Principal::anonymous();
        let mut earlier: Vec<_> = (0..3).map(|_| repository.occupy(&owner)).collect();
        for _ in 0..2 {
            assert_eq!(repository.reserve(&owner, 1).unwrap_err(), CapacityFault::Server { all: 2 });
            earlier.pop();
        }
        assert!(repository.reserve(&owner, 1).is_ok());
        let id = EnvironmentId::random();
        repository.remember_destroyed(id, owner.clone(), DestroyReason::Lost);
        assert_eq!(repository.find(&owner, id), Found::Destroyed(DestroyReason::Lost));
        assert_eq!(repository.find(&"ada".parse().unwrap(), id), Found::Unknown);
    }

    #[test]
    fn returns_copies() {
        let repository = repository(1);
        let saved = environment("one");
        repository.save(saved.clone());
        let mut copy = repository.list(&Principal::anonymous()).remove(0);
        copy.apply(Event::Ready, Instant::now()).unwrap();
        assert_eq!(repository.find(&saved.owner, saved.id), Found::Known(Box::new(saved)));
    }

    #[test]
    fn list_is_ordered_by_creation() {
        let repository = repository(3);
        let mut all = ["b", "a", "c"].map(environment);
        all.iter().for_each(|one| repository.save(one.clone()));
        all[0].apply(Event::Ready, Instant::now()).unwrap();
        repository.save(all[0].clone());
        assert_eq!(repository.list(&Principal::anonymous()), all);
    }

    #[test]
    fn destroyed_environments_are_remembered_up_to_a_limit() {
        let repository = repository(1);
        let owner = Principal::anonymous();
        let first = environment("first");
        repository.save(first.clone());
        repository.remove(first.id, DestroyReason::Idle);
        assert_eq!(repository.find(&owner, first.id), Found::Destroyed(DestroyReason::Idle));
        for _ in 0..DESTROYED_REMEMBERED_MAX {
            let next = environment("next");
            repository.save(next.clone());
            repository.remove(next.id, DestroyReason::Requested);
        }
        assert_eq!(repository.find(&owner, first.id), Found::Unknown);
    }

    #[test]
    fn oldest_failed_environment_is_surplus() {
        let repository = repository(2);
        let failed = ["a", "b", "c"].map(|name| {
            let mut one = environment(name);
            one.apply(Event::Failed, Instant::now()).unwrap();
            assert_eq!(repository.surplus_failed(), None);
            repository.save(one.clone());
            one.id
        });
        assert_eq!(repository.surplus_failed(), Some(failed[0]));
    }

    #[test]
    fn caller_with_many_failed_and_destroyed_environments_displaces_only_its_own() {
        let repository = repository(2);
        let [ada, bob] = ["ada", "bob"].map(|name| name.parse::<Principal>().unwrap());
        let failed = [&bob, &ada, &ada].map(|owner| {
            let mut one = environment_of(owner.clone(), "failed");
            one.apply(Event::Failed, Instant::now()).unwrap();
            repository.save(one.clone());
            one.id
        });
        assert_eq!(repository.surplus_failed(), Some(failed[1]));
        repository.remove(failed[0], DestroyReason::Failed);
        for _ in 0..2 * DESTROYED_REMEMBERED_MAX {
            let next = environment_of(ada.clone(), "next");
            repository.save(next.clone());
            repository.remove(next.id, DestroyReason::Requested);
        }
        assert_eq!(repository.find(&bob, failed[0]), Found::Destroyed(DestroyReason::Failed));
        assert_eq!(repository.inner.lock().unwrap().destroyed.len(), DESTROYED_REMEMBERED_MAX);
    }
}
