// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! A running environment stands still, for a fork or to be saved. No call runs then, and requests wait in the inbox.
//!
//! The state of the machine is never only in a file that may be incomplete: if it cannot be saved, the environment goes
//! on with its machine, or with a new machine that starts from the same snapshot.

use std::{pin::pin, sync::Arc};

use tokio::sync::oneshot;

use super::{Driver, Phase, now, rest::Place};
use crate::{
    domain::{
        lifecycle::{Event, State},
        machine::{Afterwards, Machine, Snapshot, SnapshotFault},
        repository::DestroyReason,
        saved::{SavedKey, SavedName},
    },
    error_code::ErrorCode,
    log_limit::{self, Kind},
    saved::{self, Expected, SaveFault, SavedAbout, SavedDraft, SavedEntry},
    service::{
        fault::{CallerFault, Fault, ServerFault},
        request::{ForkRequest, ForkSource, Request},
        saving::SavedState,
    },
};

const MIB: u64 = 1024 * 1024;

/// Maximum bytes of a saved machine besides its memory: its devices and parameters, and the metadata of its disk, whose
/// blocks the machine has occupied before.
const OTHER_BYTES: u64 = 64 * MIB;

/// The outcome of saving a running environment.
enum Parked {
    /// The machine has ended.
    Stored(Box<SavedEntry>),
    /// The snapshot failed, and the machine goes on.
    GoesOn(Fault),
    /// The machine has ended, but its state could not be stored.
    InHand(Arc<dyn Snapshot>, Fault),
}

impl Driver {
    /// Forks or suspends the environment, if this was requested and no call runs. Returns the next phase, if it is
    /// another one.
    pub(super) async fn stand_still_if_asked(&mut self, machine: &Arc<dyn Machine>) -> Option<Phase> {
        if self.environment.state() != State::Running {
            self.forks.drain(..).map(Request::Fork).collect::<Vec<_>>().into_iter().for_each(|fork| self.refuse(fork));
            return self.stopping.is_some().then(|| {
                self.reason = DestroyReason::Shutdown;
                Phase::Release(Some(Arc::clone(machine)))
            });
        }
        if self.environment.calls() > 0 {
            return None;
        }
        self.fork(machine).await;
        if self.is_doomed {
            return Some(Phase::Release(Some(Arc::clone(machine))));
        }
        match self.stopping {
            Some(_) => Some(self.suspend_at_stop(machine).await),
            None => None,
        }
    }

    /// Puts a fork in the queue, unless calls run for which it does not wait.
    pub(super) fn queue_fork(&mut self, fork: ForkRequest) {
        let (id, calls) = (self.environment.id, self.environment.calls());
        if self.environment.state() != State::Running {
            self.refuse(Request::Fork(fork));
        } else if calls > 0 && !fork.waits {
            let _ = fork.reply.send(Err(CallerFault::ForkDuringCalls { id, calls }.into()));
        } else {
            // Each of the others holds a slot of the server, so their number is limited.
            self.forks.retain(|fork| !fork.reply.is_closed());
            self.forks.push(fork);
        }
    }

    /// Takes one snapshot for all forks that wait.
    async fn fork(&mut self, machine: &Arc<dyn Machine>) {
        // Callers that have left need no snapshot.
        let mut forks = std::mem::take(&mut self.forks);
        forks.retain(|fork| !fork.reply.is_closed());
        if forks.is_empty() {
            return;
        }
        self.journal.note("standing still for a fork");
        let snapshot = self.hold(machine.snapshot(Afterwards::GoOn)).await;
        self.environment.touch(now());
        self.save();
        let snapshot = snapshot.map_err(Arc::new);
        for fork in forks {
            let source = match &snapshot {
                Ok(snapshot) => {
                    let (snapshot, files) = (Arc::clone(snapshot), self.files.clone());
                    Ok(self.source(SavedState { snapshot, files }))
                }
                Err(fault) => Err(self.snapshot_fault("fork", Arc::clone(fault))),
            };
            let _ = fork.reply.send(source);
        }
    }

    /// Returns what a fork has from this environment.
    pub(super) fn source(&self, state: SavedState) -> ForkSource {
        ForkSource {
            network: self.network.clone(),
            state,
            killed_installations: self.installations.all_killed(),
            memory_kills_told: self.memory_kills_told.load(std::sync::atomic::Ordering::Relaxed),
        }
    }

    /// Saves the environment under a name. Returns the next phase, if it is another one.
    pub(super) async fn save_as(
        &mut self,
        machine: &Arc<dyn Machine>,
        name: SavedName,
        reply: oneshot::Sender<Result<SavedEntry, Fault>>,
    ) -> Option<Phase> {
        let (id, calls) = (self.environment.id, self.environment.calls());
        if self.environment.state() != State::Running {
            self.refuse(Request::Save(name, reply));
            return None;
        }
        if calls > 0 {
            let _ = reply.send(Err(CallerFault::SaveDuringCalls { id, calls }.into()));
            return None;
        }
        match self.park(machine, SavedKey::Name(name)).await {
            Parked::Stored(entry) => {
                let _ = reply.send(Ok(*entry));
                self.reason = DestroyReason::Requested;
                Some(Phase::Release(None))
            }
            Parked::GoesOn(fault) => {
                let _ = reply.send(Err(fault));
                self.is_doomed.then(|| Phase::Release(Some(Arc::clone(machine))))
            }
            Parked::InHand(snapshot, fault) => {
                let _ = reply.send(Err(fault));
                Some(Phase::Rest(Place::Hand(snapshot)))
            }
        }
    }

    /// Suspends or destroys the environment, which has reached its idle timeout. Returns the next phase, if it is
    /// another one.
    pub(super) async fn end_idle(&mut self, machine: &Arc<dyn Machine>) -> Option<Phase> {
        let release = || Some(Phase::Release(Some(Arc::clone(machine))));
        if !self.saving.suspends_idle || self.environment.state() != State::Running {
            self.reason = DestroyReason::Idle;
            return release();
        }
        match self.park(machine, SavedKey::Suspended(self.environment.id)).await {
            Parked::Stored(_) => {
                self.journal.note("suspended, because it reached its idle timeout");
                Some(Phase::Rest(Place::Store))
            }
            Parked::GoesOn(fault) => {
                self.log_unsuspended(&fault);
                if self.is_doomed {
                    return release();
                }
                // No later attempt can succeed, and the environment must not stay forever.
                if fault.code() == ErrorCode::SavingUnavailable {
                    self.reason = DestroyReason::Idle;
                    return release();
                }
                // The next attempt is after another idle timeout.
                self.environment.touch(now());
                self.save();
                None
            }
            Parked::InHand(snapshot, fault) => {
                self.log_unsuspended(&fault);
                Some(Phase::Rest(Place::Hand(snapshot)))
            }
        }
    }

    /// Suspends the environment because the server stops, or else destroys it.
    async fn suspend_at_stop(&mut self, machine: &Arc<dyn Machine>) -> Phase {
        // Until it is suspended, the environment counts as lost.
        self.reason = DestroyReason::Unsuspended;
        match self.park(machine, SavedKey::Suspended(self.environment.id)).await {
            Parked::Stored(_) => Phase::Rest(Place::Store),
            Parked::GoesOn(fault) => {
                self.log_unsuspended(&fault);
                Phase::Release(Some(Arc::clone(machine)))
            }
            Parked::InHand(_, fault) => {
                self.log_unsuspended(&fault);
                Phase::Release(None)
            }
        }
    }

    /// Takes a snapshot, ends the machine, and stores the snapshot.
    async fn park(&mut self, machine: &Arc<dyn Machine>, key: SavedKey) -> Parked {
        let draft = match self.draft(key).await {
            Ok(draft) => draft,
            Err(fault) => return Parked::GoesOn(fault),
        };
        self.apply(Event::SuspendRequested);
        let snapshot = match self.hold(machine.snapshot(Afterwards::End)).await {
            Ok(snapshot) => snapshot,
            Err(fault) => {
                self.apply(Event::Ready);
                return Parked::GoesOn(self.snapshot_fault("save", Arc::new(fault)));
            }
        };
        // The machine that used the files has ended; the snapshot has what it needs of them.
        let stored = self.store(Arc::clone(&snapshot), draft).await;
        self.apply(Event::Suspended);
        match stored {
            Ok(entry) => {
                self.registry.set_running(&self.environment, false);
                // The files that the machine started from; they may be those of an entry that was removed since.
                self.files = None;
                Parked::Stored(Box::new(entry))
            }
            Err(fault) => Parked::InHand(snapshot, fault.after_the_machine()),
        }
    }

    /// Creates a draft of a saved machine.
    pub(super) async fn draft(&mut self, key: SavedKey) -> Result<SavedDraft, Fault> {
        let (store, owner) = (self.saving.store()?.clone(), self.environment.owner.clone());
        let bytes = u64::from(self.environment.size.memory_mib) * MIB + OTHER_BYTES;
        let expected = Expected { bytes, callers: self.saving.callers.count() };
        let draft = self.hold(async move { store.draft(&owner, key, expected).await }).await;
        draft.map_err(|source| Fault::of_saving(self.environment.id, source))
    }

    /// Stores a snapshot.
    pub(super) async fn store(&mut self, snapshot: Arc<dyn Snapshot>, draft: SavedDraft) -> Result<SavedEntry, Fault> {
        let written = self.hold(async { snapshot.write(draft.machine_folder()).await }).await;
        written.map_err(|fault| match saved::is_disk_full(&fault) {
            true => Fault::of_saving(self.environment.id, SaveFault::DiskFull(fault.into())),
            false => self.snapshot_fault("save", Arc::new(fault)),
        })?;
        let published = self.hold(draft.publish(self.about())).await;
        published.map_err(|source| Fault::of_saving(self.environment.id, source))
    }

    fn about(&self) -> SavedAbout {
        let environment = &self.environment;
        SavedAbout {
            id: environment.id,
            name: environment.name.clone(),
            runtime: environment.runtime,
            image: environment.image.clone(),
            pull_rights: environment.pull_rights,
            created_at: environment.created_at,
            idle_timeout: environment.idle_timeout,
            network: self.network.clone(),
            cpus: environment.size.cpus,
            memory_mib: environment.size.memory_mib,
            disk_mib: environment.size.disk_mib,
            variables: environment.variables.clone(),
            killed_installations: self.installations.all_killed(),
        }
    }

    /// Waits for an operation during which the environment stands still or has no machine. Requests wait in the inbox;
    /// a destruction or a stop of the server is recorded.
    pub(super) async fn hold<T>(&mut self, operation: impl Future<Output = T>) -> T {
        let mut operation = pin!(operation);
        loop {
            tokio::select! {
                outcome = &mut operation => return outcome,
                request = self.inbox.arrival() => match request {
                    Some(Request::Destroy(reason, waiter)) => self.destroy(reason, waiter),
                    Some(Request::Suspend(done)) => self.stopping = Some(done),
                    Some(Request::Expire) | None => {}
                    Some(other) => self.hold_request(other),
                },
            }
        }
    }

    /// Holds a request until the environment no longer stands still, or refuses it if too many are held.
    pub(super) fn hold_request(&mut self, request: Request) {
        if let Some(surplus) = self.inbox.hold(request) {
            self.refuse(surplus);
        }
    }

    fn snapshot_fault(&self, operation: &'static str, source: Arc<SnapshotFault>) -> Fault {
        match &*source {
            SnapshotFault::Unsupported { why } => CallerFault::CannotSave { why: why.clone() }.into(),
            SnapshotFault::Damaged { .. } | SnapshotFault::Failed { .. } => {
                ServerFault::Snapshot { operation, id: self.environment.id, source, restarts: false }.into()
            }
        }
    }

    fn log_unsuspended(&self, fault: &Fault) {
        self.journal.note(&format!("failed to suspend: {}", fault.for_client()));
        if let Some(left_out) = log_limit::admitted_of(&self.environment.owner, Kind::Machine) {
            let error = fault as &dyn std::error::Error;
            tracing::error!(error, left_out, "failed to suspend an environment");
        }
    }
}
