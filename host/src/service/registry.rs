// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The environments of this server, the handles of their drivers, and the logs of failed starts.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    task::AbortHandle,
};
use waggle_shared::mutex::lock;

use super::{
    installation_queue::InstallationQueue,
    journal::{EnvironmentLog, Journal},
    refusals::Refusals,
    request::Request,
    resume_note::ResumeNote,
};
use crate::{
    domain::{
        environment::Environment,
        environment_id::EnvironmentId,
        principal::Principal,
        repository::{DestroyReason, Repository, surplus},
        shared_limit::SharedLimit,
    },
    log_limit,
    lost::{Lost, RunningIds},
};

/// Maximum number of logs of failed starts; each log is a screenful of lines. Above the limit, the principal with the
/// most logs loses its oldest log.
const FAILED_STARTS_MAX: usize = 32;

/// The environments, and the handles of the drivers that own them.
#[derive(Debug)]
pub(super) struct Registry {
    pub(super) repository: Repository,
    drivers: Mutex<Drivers>,
    failed_starts: Mutex<VecDeque<EnvironmentLog>>,
    /// The ids of the environments with machines, for the next server.
    running: Option<RunningIds>,
}

/// The handles of all drivers.
#[derive(Debug, Default)]
pub(super) struct Drivers {
    /// Set by a shutdown. Then no new driver and no new call can start.
    pub(super) closing: bool,
    pub(super) handles: HashMap<EnvironmentId, Handle>,
}

/// The handle of one driver.
#[derive(Clone, Debug)]
pub(super) struct Handle {
    pub(super) requests: mpsc::Sender<Request>,
    pub(super) task: AbortHandle,
    pub(super) refusals: Arc<Refusals>,
    pub(super) journal: Arc<Journal>,
    /// One permit for each concurrent call; further calls wait in order. Closed when the environment takes no more
    /// calls.
    pub(super) places: Arc<Semaphore>,
    pub(super) installations: Arc<InstallationQueue>,
    pub(super) resume_note: Arc<ResumeNote>,
}

impl Registry {
    /// Creates a registry without environments, which knows those that an earlier server has lost.
    pub(super) fn new(limit: SharedLimit, running: Option<RunningIds>, lost: Vec<Lost>) -> Self {
        let repository = Repository::new(limit);
        for Lost { id, owner, reason } in lost {
            repository.remember_destroyed(id, owner, reason);
        }
        Self { repository, drivers: Mutex::default(), failed_starts: Mutex::default(), running }
    }

    pub(super) fn drivers(&self) -> MutexGuard<'_, Drivers> {
        lock(&self.drivers)
    }

    pub(super) fn handle(&self, id: EnvironmentId) -> Option<Handle> {
        self.drivers().handles.get(&id).cloned()
    }

    /// Removes an environment and its driver's handle, when the driver ends.
    pub(super) fn forget(&self, id: EnvironmentId, reason: DestroyReason) {
        if let Some(running) = &self.running {
            match reason == DestroyReason::Unsuspended {
                true => running.keep_unsuspended(id),
                false => running.remove(id),
            }
        }
        self.repository.remove(id, reason);
        self.drivers().handles.remove(&id);
        log_limit::end(id);
    }

    /// Records whether an environment has a machine, and would be lost if the server were killed.
    pub(super) fn set_running(&self, environment: &Environment, is_running: bool) {
        match (&self.running, is_running) {
            (Some(running), true) => running.add(environment.id, &environment.owner),
            (Some(running), false) => running.remove(environment.id),
            (None, _) => {}
        }
    }

    /// Stores the log of an environment that failed to start. Only this log remains of the environment.
    pub(super) fn remember_failed_start(&self, log: EnvironmentLog) {
        let mut failed = lock(&self.failed_starts);
        failed.push_back(log);
        if failed.len() > FAILED_STARTS_MAX {
            let surplus = surplus(failed.iter().map(|log| &log.environment.owner));
            surplus.and_then(|place| failed.remove(place));
        }
    }

    pub(super) fn failed_start(&self, owner: &Principal, id: EnvironmentId) -> Option<EnvironmentLog> {
        let failed = lock(&self.failed_starts);
        failed.iter().find(|log| log.environment.id == id && log.environment.owner == *owner).cloned()
    }

    /// Destroys a failed environment if there are too many. A driver calls this function when its machine
    /// fails.
    pub(super) fn expire_surplus_failed(&self) {
        let Some(handle) = self.repository.surplus_failed().and_then(|id| self.handle(id)) else { return };
        let (waiter, _) = oneshot::channel();
        // A driver with a full queue is asked again when the next machine fails, or its environment expires when idle.
        let _ = handle.requests.try_send(Request::Destroy(DestroyReason::Failed, waiter));
    }
}
