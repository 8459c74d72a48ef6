// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The environments that there are, in memory, and how many there can be.
//!
//! It hands out copies: changing one changes nothing here. A slot stands for one machine; it is taken before anything
//! is made for the machine and falls back when its holder lets go of it, so the count is exact and a create that fails
//! leaves no trace. An environment whose machine has failed holds no slot, but stays to be seen until it is destroyed.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use super::{
    environment::{Environment, EnvironmentId},
    lifecycle::State,
    principal::Principal,
};
use crate::mutex::lock;

/// How many destroyed environments are remembered, so that a late call hears what became of its environment.
pub const DESTROYED_REMEMBERED_MAX: usize = 256;

/// The environments of all owners, by creation.
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

#[derive(Clone, Debug)]
struct Destroyed {
    id: EnvironmentId,
    owner: Principal,
    reason: DestroyReason,
}

/// Why an environment was destroyed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DestroyReason {
    /// A client asked for it.
    Requested,
    /// Nobody called it for as long as it may idle.
    Idle,
    /// Its client was gone before it had been made, or its machine could not be made.
    NeverReady,
    /// Its machine had failed, and so had more machines after it than are kept to be seen.
    Failed,
    /// The server ends.
    Shutdown,
}

/// What is known about an id.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Found {
    /// A copy of the environment.
    Known(Box<Environment>),
    /// It was destroyed, not long ago.
    Destroyed(DestroyReason),
    /// Nothing, at least nothing that this owner may hear of.
    Unknown,
}

impl Repository {
    /// An empty one, with room for `environments_max` machines.
    #[must_use]
    pub fn new(environments_max: usize) -> Self {
        let slots = Arc::new(Slots { max: environments_max, taken: Mutex::new(0) });
        Self { inner: Mutex::default(), slots }
    }

    /// Takes a slot for one machine.
    ///
    /// # Errors
    /// [`CapacityFault`] if all are taken.
    pub fn reserve(&self) -> Result<Slot, CapacityFault> {
        let mut taken = lock(&self.slots.taken);
        if *taken >= self.slots.max {
            return Err(CapacityFault { environments_max: self.slots.max });
        }
        *taken += 1;
        Ok(Slot(Arc::clone(&self.slots)))
    }

    /// Adds an environment, or replaces what was known of it.
    pub fn save(&self, environment: Environment) {
        let mut inner = lock(&self.inner);
        match inner.environments.iter_mut().find(|known| known.id == environment.id) {
            Some(known) => *known = environment,
            None => inner.environments.push(environment),
        }
    }

    /// Forgets an environment but for its id and why it went.
    pub fn remove(&self, id: EnvironmentId, reason: DestroyReason) {
        let mut inner = lock(&self.inner);
        let Some(position) = inner.environments.iter().position(|known| known.id == id) else { return };
        let Environment { owner, .. } = inner.environments.remove(position);
        if inner.destroyed.len() >= DESTROYED_REMEMBERED_MAX {
            inner.destroyed.pop_front();
        }
        inner.destroyed.push_back(Destroyed { id, owner, reason });
    }

    /// Looks an id up among an owner's environments.
    #[must_use]
    pub fn find(&self, owner: &Principal, id: EnvironmentId) -> Found {
        let inner = lock(&self.inner);
        if let Some(known) = inner.environments.iter().find(|known| known.id == id && known.owner == *owner) {
            return Found::Known(Box::new(known.clone()));
        }
        let destroyed = inner.destroyed.iter().find(|destroyed| destroyed.id == id && destroyed.owner == *owner);
        destroyed.map_or(Found::Unknown, |destroyed| Found::Destroyed(destroyed.reason))
    }

    /// An owner's environments, oldest first.
    #[must_use]
    pub fn list(&self, owner: &Principal) -> Vec<Environment> {
        lock(&self.inner).environments.iter().filter(|known| known.owner == *owner).cloned().collect()
    }

    /// The oldest of the failed environments, if there are more than there can be machines.
    #[must_use]
    pub fn surplus_failed(&self) -> Option<EnvironmentId> {
        let inner = lock(&self.inner);
        let mut failed = inner.environments.iter().filter(|known| known.state() == State::Error);
        let oldest = failed.next()?;
        (failed.count() >= self.slots.max).then_some(oldest.id)
    }
}

/// Room for one machine; it falls back when this is dropped.
#[derive(Debug)]
pub struct Slot(Arc<Slots>);

#[derive(Debug)]
struct Slots {
    max: usize,
    taken: Mutex<usize>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = lock(&self.0.taken);
        *taken = taken.saturating_sub(1);
    }
}

/// There is no room for another machine.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "all {environments_max} environments that this server can have are in use; destroy one with destroy_environment, \
     or wait until one has been idle for its time"
)]
pub struct CapacityFault {
    /// How many there can be.
    pub environments_max: usize,
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant, SystemTime};

    use super::*;
    use crate::domain::{
        environment::{EnvironmentName, NewEnvironment},
        lifecycle::Event,
        runtime::Runtime,
    };

    fn environment(name: &str) -> Environment {
        let new = NewEnvironment {
            owner: Principal::anonymous(),
            name: Some(EnvironmentName::parse(name).unwrap()),
            runtime: Runtime::Shell,
            image: "debian".parse().unwrap(),
            idle_timeout: Duration::from_secs(60),
            network: None,
        };
        Environment::create(EnvironmentId::random(), new, SystemTime::UNIX_EPOCH, Instant::now())
    }

    #[test]
    fn capacity_is_exact_under_contention() {
        let repository = Repository::new(10);
        let taken: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| (0..10).filter_map(|_| repository.reserve().ok()).collect::<Vec<_>>()))
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(taken.len(), 10);
        assert_eq!(repository.reserve().unwrap_err(), CapacityFault { environments_max: 10 });
        drop(taken);
        assert_eq!((0..11).map(|_| repository.reserve()).collect::<Vec<_>>().iter().flatten().count(), 10);
    }

    #[test]
    fn what_is_handed_out_is_a_copy() {
        let repository = Repository::new(1);
        let saved = environment("one");
        repository.save(saved.clone());
        let mut copy = repository.list(&Principal::anonymous()).remove(0);
        copy.apply(Event::Ready, Instant::now()).unwrap();
        assert_eq!(repository.find(&saved.owner, saved.id), Found::Known(Box::new(saved)));
    }

    #[test]
    fn the_list_is_ordered_by_creation() {
        let repository = Repository::new(3);
        let mut all = ["b", "a", "c"].map(environment);
        all.iter().for_each(|one| repository.save(one.clone()));
        all[0].apply(Event::Ready, Instant::now()).unwrap();
        repository.save(all[0].clone());
        assert_eq!(repository.list(&Principal::anonymous()), all);
    }

    #[test]
    fn a_destroyed_environment_is_remembered_for_a_while() {
        let repository = Repository::new(1);
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
    fn failed_environments_do_not_pile_up() {
        let repository = Repository::new(2);
        let failed = ["a", "b", "c"].map(|name| {
            let mut one = environment(name);
            one.apply(Event::Failed, Instant::now()).unwrap();
            assert_eq!(repository.surplus_failed(), None);
            repository.save(one.clone());
            one.id
        });
        assert_eq!(repository.surplus_failed(), Some(failed[0]));
    }
}
