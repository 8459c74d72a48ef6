// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! A suspended environment, until it comes back or is destroyed. It has no machine.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use tokio::sync::oneshot;

use super::{Driver, Phase, boot::Boot, now};
use crate::{
    domain::{
        lifecycle::Event,
        machine::{Machine, Machines, Snapshot},
        repository::DestroyReason,
        saved::{SavedKey, SavedName},
    },
    log_limit::{self, Kind},
    saved::{SavedEntry, StoreFault},
    service::{
        fault::{CallerFault, Fault, ResumeFault, ServerFault},
        request::Request,
        resume_note::Resumed,
        saving::SavedState,
    },
};

/// The place of a suspended machine's state.
pub(super) enum Place {
    Store,
    /// The state could not be stored, so the environment comes back as soon as possible.
    Hand(Arc<dyn Snapshot>),
}

impl Driver {
    /// Waits for a call, and then starts a machine from the saved state. Returns the next phase.
    pub(super) async fn rest(&mut self, machines: &dyn Machines, place: Place) -> Phase {
        let mut wakes = matches!(place, Place::Hand(_));
        loop {
            // The end of the server removes no saved state.
            if self.reason == DestroyReason::Unsuspended || (self.stopping.is_some() && !self.is_doomed) {
                return self.stop(&place);
            }
            if self.is_doomed {
                match self.remove_saved().await {
                    Ok(()) => return Phase::Release(None),
                    Err(_) if self.reason == DestroyReason::Shutdown => return self.stop(&place),
                    Err(fault) => self.not_removed(fault),
                }
            }
            if std::mem::take(&mut wakes) {
                match self.resume(machines, &place).await {
                    Some(machine) => return Phase::Serve(machine),
                    None => continue,
                }
            }
            match self.inbox.next().await {
                Some(call @ Request::Begin(..)) => {
                    self.inbox.put_back(call);
                    wakes = true;
                }
                Some(Request::Fork(fork)) => {
                    self.environment.touch(now());
                    self.save();
                    let state = self.open(machines, &place).await;
                    let source = match state {
                        Ok(state) => Ok(self.source(state)),
                        Err(fault) => Err(self.resume_fault(&Arc::new(fault))),
                    };
                    let _ = fork.reply.send(source);
                }
                Some(Request::Save(name, reply)) => self.save_rested(machines, &place, name, reply).await,
                Some(Request::Suspend(done)) => self.stopping = Some(done),
                Some(Request::Destroy(reason, waiter)) => self.destroy(reason, waiter),
                Some(Request::Expire) => match &place {
                    Place::Store if self.has_expired() => {
                        self.reason = DestroyReason::Expired;
                        return Phase::Release(None);
                    }
                    // It was suspended because its server stopped, and not because it was idle.
                    Place::Store if !self.saving.suspends_idle && self.is_idle() => self.doom(DestroyReason::Idle),
                    Place::Store => {}
                    Place::Hand(_) => wakes = true,
                },
                None => return Phase::Release(None),
            }
        }
    }

    /// Ends the environment in this server, because the server stops.
    fn stop(&mut self, place: &Place) -> Phase {
        match place {
            Place::Store => {
                self.reason = DestroyReason::Suspended;
                Phase::Leave
            }
            Place::Hand(_) => {
                self.reason = DestroyReason::Unsuspended;
                Phase::Release(None)
            }
        }
    }

    /// Starts a machine from the saved state. If this fails, the state remains, and the calls that wait get the fault.
    async fn resume(&mut self, machines: &dyn Machines, place: &Place) -> Option<Arc<dyn Machine>> {
        self.apply(Event::ResumeRequested);
        self.journal.note("coming back");
        match self.open(machines, place).await {
            Ok(_) if self.is_doomed || self.stopping.is_some() => {
                self.apply(Event::Failed);
                return None;
            }
            Ok(SavedState { snapshot, files }) => (self.snapshot, self.files) = (Some(snapshot), files),
            Err(fault) => {
                self.not_resumed(fault);
                return None;
            }
        }
        match self.boot(machines).await {
            Boot::Started(machine) => {
                // Otherwise the next server would bring the environment back a second time.
                if let Err(fault) = self.remove_saved().await {
                    self.hold(machine.stop()).await;
                    drop(machine);
                    self.not_resumed(ResumeFault::Remove(fault));
                    return None;
                }
                self.resumed(&machine);
                Some(machine)
            }
            Boot::Failed(fault) => {
                self.not_resumed(ResumeFault::Start(fault));
                None
            }
            Boot::Cancelled(machine) => {
                if let Some(machine) = machine {
                    self.hold(machine.stop()).await;
                }
                self.apply(Event::Failed);
                None
            }
        }
    }

    fn resumed(&mut self, machine: &Arc<dyn Machine>) {
        let memory = machine.has_resumed();
        if !memory {
            self.memory_kills_told.store(0, Relaxed);
        }
        self.journal.set_machine(machine);
        self.journal.note(match memory {
            true => "came back with its memory; its connections to the network are closed",
            false => "came back with its files only; the programs that ran have ended",
        });
        self.resume_note.set(Resumed { memory });
        self.environment.memory_lost = !memory;
        self.registry.set_running(&self.environment, true);
        self.apply(Event::Ready);
        tracing::info!(memory, "environment came back");
    }

    fn not_resumed(&mut self, fault: ResumeFault) {
        self.journal.note(&format!("failed to come back: {}", fault.for_client()));
        self.apply(Event::Failed);
        let fault = Arc::new(fault);
        for request in self.inbox.take_held() {
            if let Request::Begin(_, reply) = request {
                let _ = reply.send(Err(self.resume_fault(&fault)));
            } else {
                self.hold_request(request);
            }
        }
    }

    /// Returns the fault of a caller. An environment whose saved state is no longer in the store has ended.
    fn resume_fault(&mut self, fault: &Arc<ResumeFault>) -> Fault {
        let id = self.environment.id;
        if matches!(**fault, ResumeFault::Missing) {
            self.doom(DestroyReason::Expired);
            return CallerFault::DestroyedEnvironment { id, reason: DestroyReason::Expired }.into();
        }
        ServerFault::Resume { id, source: Arc::clone(fault) }.into()
    }

    /// Saves the environment under a name, and then destroys it.
    async fn save_rested(
        &mut self,
        machines: &dyn Machines,
        place: &Place,
        name: SavedName,
        reply: oneshot::Sender<Result<SavedEntry, Fault>>,
    ) {
        let entry = self.copy_to(machines, place, SavedKey::Name(name)).await;
        if entry.is_ok() {
            self.doom(DestroyReason::Requested);
        }
        let _ = reply.send(entry);
    }

    async fn copy_to(&mut self, machines: &dyn Machines, place: &Place, key: SavedKey) -> Result<SavedEntry, Fault> {
        let draft = self.draft(key).await?;
        let state = match self.open(machines, place).await {
            Ok(state) => state,
            Err(fault) => return Err(self.resume_fault(&Arc::new(fault))),
        };
        self.store(state.snapshot, draft).await
    }

    /// Opens the saved state.
    async fn open(&mut self, machines: &dyn Machines, place: &Place) -> Result<SavedState, ResumeFault> {
        match place {
            Place::Hand(snapshot) => Ok(SavedState { snapshot: Arc::clone(snapshot), files: self.files.clone() }),
            Place::Store => {
                let (saving, owner, key) = (self.saving.clone(), self.environment.owner.clone(), self.key());
                self.hold(async move { saving.open(machines, &owner, &key).await }).await
            }
        }
    }

    /// Whether the store has removed the saved state because of its age.
    fn has_expired(&self) -> bool {
        let store = self.saving.store.as_ref();
        store.is_some_and(|store| store.find(&self.environment.owner, &self.key()).is_none())
    }

    /// Removes the saved state from the store, if it is there.
    async fn remove_saved(&mut self) -> Result<(), StoreFault> {
        let Some(store) = self.saving.store.clone() else { return Ok(()) };
        let (owner, key) = (self.environment.owner.clone(), self.key());
        let removed = self.hold(async move { store.remove(&owner, &key).await }).await;
        removed.map(drop).inspect_err(|fault| {
            if let Some(left_out) = log_limit::admitted_of(&self.environment.owner, Kind::Machine) {
                let error = fault as &dyn std::error::Error;
                tracing::error!(error, left_out, "failed to remove the saved state of an environment");
            }
        })
    }

    /// Stays suspended, because the environment could not be destroyed.
    fn not_removed(&mut self, fault: StoreFault) {
        self.journal.note("could not be destroyed, because its saved state could not be removed");
        (self.is_doomed, self.reason) = (false, DestroyReason::NeverReady);
        self.environment.touch(now());
        self.save();
        let (id, source) = (self.environment.id, Arc::new(fault));
        for waiter in self.waiters.drain(..) {
            let _ = waiter.send(Err(ServerFault::Destroy { id, source: Arc::clone(&source) }.into()));
        }
    }

    fn key(&self) -> SavedKey {
        SavedKey::Suspended(self.environment.id)
    }
}
