// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The environments of the server, in memory, and the slots that limit the number of machines.
//!
//! The repository returns copies; changing a copy does not change the repository. A slot represents one machine. The
//! slot is reserved before anything is created for the machine, and dropping the slot frees it. The count is therefore
//! exact, and a failed create occupies no slot. A failed environment has no slot, but stays visible until it is
//! destroyed.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use waggle_shared::mutex::lock;

use super::{environment::Environment, environment_id::EnvironmentId, lifecycle::State, principal::Principal};

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
    /// Creates an empty repository with `environments_max` slots.
    #[must_use]
    pub fn new(environments_max: usize) -> Self {
        let slots = Arc::new(Slots { max: environments_max, taken: Mutex::new(0) });
        Self { inner: Mutex::default(), slots }
    }

    /// Reserves a slot for one machine.
    ///
    /// # Errors
    /// [`CapacityFault`] if all slots are taken.
    pub fn reserve(&self) -> Result<Slot, CapacityFault> {
        let mut taken = lock(&self.slots.taken);
        if *taken >= self.slots.max {
            return Err(CapacityFault { environments_max: self.slots.max });
        }
        *taken += 1;
        Ok(Slot(Arc::clone(&self.slots)))
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
        if inner.destroyed.len() >= DESTROYED_REMEMBERED_MAX {
            inner.destroyed.pop_front();
        }
        inner.destroyed.push_back(Destroyed { id, owner, reason });
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

    /// Returns the oldest failed environment if there are more failed environments than slots.
    #[must_use]
    pub fn surplus_failed(&self) -> Option<EnvironmentId> {
        let inner = lock(&self.inner);
        let mut failed = inner.environments.iter().filter(|known| known.state() == State::Error);
        let oldest = failed.next()?;
        (failed.count() >= self.slots.max).then_some(oldest.id)
    }
}

/// The reservation of a slot for one machine; dropping the reservation frees the slot.
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

/// All slots are taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "this server has reached its maximum of {environments_max} environments; destroy one with destroy_environment, \
     or wait until one reaches its idle timeout"
)]
pub struct CapacityFault {
    /// The number of slots.
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
    fn returns_copies() {
        let repository = Repository::new(1);
        let saved = environment("one");
        repository.save(saved.clone());
        let mut copy = repository.list(&Principal::anonymous()).remove(0);
        copy.apply(Event::Ready, Instant::now()).unwrap();
        assert_eq!(repository.find(&saved.owner, saved.id), Found::Known(Box::new(saved)));
    }

    #[test]
    fn list_is_ordered_by_creation() {
        let repository = Repository::new(3);
        let mut all = ["b", "a", "c"].map(environment);
        all.iter().for_each(|one| repository.save(one.clone()));
        all[0].apply(Event::Ready, Instant::now()).unwrap();
        repository.save(all[0].clone());
        assert_eq!(repository.list(&Principal::anonymous()), all);
    }

    #[test]
    fn destroyed_environments_are_remembered_up_to_a_limit() {
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
    fn oldest_failed_environment_is_surplus() {
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
