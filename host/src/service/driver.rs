// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The task that owns one environment, from the creation until all resources of the environment are released.
//!
//! # States
//!
//! A driver runs through three phases. Each phase is a loop over the events that can happen in that phase. In the
//! diagram, the environment's state (see [`lifecycle`](crate::domain::lifecycle)) is in parentheses.
//!
//! ```text
//!   boot (creating) ──machine ready──▶ serve (running) ──destroy, idle, caller left──▶ release (destroying) ──▶ end
//!     │   │                              │    ▲                                              ▲
//!     │   │                              │    │ machine ended: stop it, free the slot,       │
//!     │   │                              └────┘ go on serving as a failed environment (error)│
//!     │   └─destroy, caller left: cancel the start; if the machine was ready all the same ───┤
//!     └─start failed or cancelled: end                                                       │
//! ```
//!
//! - **boot**: [`Machines::start`] runs. Begin requests are refused. A destroy request cancels the start, and so does a
//!   caller that leaves. The driver still waits for the end of the start, because until then a machine may exist.
//! - **serve**: calls begin and end. The phase lasts until the environment must be destroyed. If the machine ends by
//!   itself, the phase continues: the owner can still see the failed environment and read its log.
//! - **release**: the machine is stopped. Begin requests are refused; further destroy requests wait for the same end.
//!
//! # Ownership
//!
//! - The driver is the only writer of its [`Environment`]. After every change it saves a copy in the [`Registry`]. All
//!   other code reads that copy.
//! - The driver owns the [`Slot`] of its machine. The driver frees the slot only after the machine has stopped, so
//!   there are never more machines than slots.
//! - All other code sends requests through an `mpsc::Sender<Request>`. A [`Call`] contains the machine, and a permit
//!   for the message that reports the call's end. Calls do not delay a destroy: stopping the machine ends the calls.
//! - The caller of `create` holds a guard until it receives the result. Dropping the guard cancels `abandoned`, so a
//!   create that is dropped at any time leaves nothing behind.
//!
//! # The end
//!
//! The task may end by return, panic or abort. In each case, dropping the [`Driver`] first frees the slot, then removes
//! the environment from the registry, then wakes the callers that wait for the destruction. Because of this order, a
//! client that sees the destruction or a failed create can use the slot at once.

use std::{
    future::pending,
    sync::{Arc, atomic::AtomicU64},
};

use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    installation_queue::InstallationQueue,
    journal::{EnvironmentLog, Journal},
    refusals::Refusals,
    registry::Registry,
    request::{Beginning, Call, Request},
};
use crate::{
    domain::{
        capabilities::AgentOrigin,
        environment::{CALLS_MAX, CallRefusal, Environment},
        lifecycle::{Event, State},
        machine::{Machine, MachineSpec, Machines, StartFault},
        repository::{DestroyReason, Slot},
    },
    log_limit::{self, Kind},
};

pub(super) struct Driver {
    pub(super) environment: Environment,
    pub(super) spec: MachineSpec,
    pub(super) slot: Option<Slot>,
    pub(super) registry: Arc<Registry>,
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) refusals: Arc<Refusals>,
    pub(super) journal: Arc<Journal>,
    pub(super) places: Arc<Semaphore>,
    pub(super) memory_kills_told: Arc<AtomicU64>,
    pub(super) installations: Arc<InstallationQueue>,
    /// Cancelled when the caller of `create` leaves before it receives the result.
    pub(super) abandoned: CancellationToken,
    pub(super) reason: DestroyReason,
    /// Callers that wait for the destruction.
    pub(super) waiters: Vec<oneshot::Sender<()>>,
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.slot = None;
        self.places.close();
        self.installations.close();
        self.registry.forget(self.environment.id, self.reason);
        if std::thread::panicking() {
            tracing::error!(environment = %self.environment.id, "the task of an environment panicked");
        }
        for waiter in self.waiters.drain(..) {
            // The waiter may have left.
            let _ = waiter.send(());
        }
    }
}

impl Driver {
    /// Runs the environment until it is destroyed. `ready` receives the outcome of the start, and is dropped without an
    /// outcome if the start is cancelled.
    pub(super) async fn run(
        mut self,
        machines: Arc<dyn Machines>,
        ready: oneshot::Sender<Result<(Environment, AgentOrigin), StartFault>>,
    ) {
        match self.boot(&*machines).await {
            Boot::Started(machine) => {
                let capabilities = machine.agent().capabilities();
                let agent_origin = capabilities.agent_origin;
                self.journal.set_machine(&machine);
                self.journal.note("running");
                self.apply(Event::Ready);
                // If the caller has left, `abandoned` is cancelled, and serving ends at once.
                let _ = ready.send(Ok((self.environment.clone(), agent_origin)));
                tracing::info!(agent = capabilities.agent_build, "environment is running");
                self.serve(&machine).await;
                self.release(&*machine).await;
                tracing::info!(reason = ?self.reason, "environment is destroyed");
            }
            Boot::Failed(fault) => {
                self.journal.note(&fault.for_client());
                self.apply(Event::Failed);
                self.apply(Event::DestroyRequested);
                self.apply(Event::Released);
                self.registry.remember_failed_start(self.log(fault.console.clone()));
                // Frees the slot before the caller sees the failure.
                drop(self);
                let _ = ready.send(Err(fault));
            }
            Boot::Cancelled(machine) => {
                match machine {
                    Some(machine) => self.release(&*machine).await,
                    None => self.apply(Event::Released),
                }
                // Records why the environment was destroyed before the caller of `create` asks for the reason.
                tracing::info!(reason = ?self.reason, "environment is destroyed");
                drop(self);
                drop(ready);
            }
        }
    }

    /// Starts the machine. If the environment is destroyed or abandoned meanwhile, cancels the start. Returns only
    /// after the start has ended, even if cancelled: until then the machine may exist, and needs its slot.
    async fn boot(&mut self, machines: &dyn Machines) -> Boot {
        let (spec, journal) = (self.spec.clone(), Arc::clone(&self.journal));
        let publish = |stage| journal.note_stage(stage);
        let cancelled = CancellationToken::new();
        let abandoned = self.abandoned.clone();
        let mut start = machines.start(&spec, &publish, Box::pin(cancelled.cancelled()));
        let mut open = true;
        loop {
            let wanted = !cancelled.is_cancelled();
            tokio::select! {
                outcome = &mut start => return match outcome {
                    outcome if !wanted => Boot::Cancelled(outcome.ok()),
                    Ok(machine) => Boot::Started(machine),
                    Err(fault) => Boot::Failed(fault),
                },
                () = abandoned.cancelled(), if wanted => self.cancel(&cancelled),
                request = self.requests.recv(), if open => match request {
                    Some(Request::Begin(_, reply)) => {
                        let _ = reply.send(Err(CallRefusal::NotRunning { state: self.environment.state() }));
                    }
                    Some(Request::Destroy(reason, waiter)) => {
                        self.waiters.push(waiter);
                        if wanted {
                            self.reason = reason;
                            self.cancel(&cancelled);
                        }
                    }
                    Some(Request::Expire) => {}
                    None => {
                        open = false;
                        self.cancel(&cancelled);
                    }
                },
            }
        }
    }

    fn cancel(&mut self, start: &CancellationToken) {
        self.apply(Event::DestroyRequested);
        start.cancel();
    }

    /// Answers requests until the environment must be destroyed.
    async fn serve(&mut self, machine: &Arc<dyn Machine>) {
        let (call_ended, mut calls_ended) = mpsc::channel(CALLS_MAX);
        loop {
            let runs = self.environment.state() == State::Running;
            let gone = async { if runs { machine.gone().await } else { pending().await } };
            tokio::select! {
                // A call that has ended is counted out before the call that gets its place begins.
                biased;
                Some(()) = calls_ended.recv() => {
                    self.environment.end_call(now());
                    self.save();
                }
                request = self.requests.recv() => match request {
                    Some(Request::Begin(beginning, reply)) => {
                        let call = self.begin(machine, &call_ended, beginning);
                        // If the caller has left, sending fails and drops the call. Dropping the call ends it.
                        let _ = reply.send(call);
                    }
                    Some(Request::Destroy(reason, waiter)) => {
                        self.reason = reason;
                        self.waiters.push(waiter);
                        return;
                    }
                    Some(Request::Expire) => {
                        if self.environment.idle_deadline().is_some_and(|deadline| deadline <= now()) {
                            self.reason = DestroyReason::Idle;
                            return;
                        }
                    }
                    None => return,
                },
                reason = gone => {
                    if let Some(left_out) = log_limit::admitted_of(&self.environment.owner, Kind::Machine) {
                        tracing::error!(reason, left_out, "the machine of an environment ended");
                    }
                    machine.stop().await;
                    self.journal.note(&format!("the machine is gone: {reason}"));
                    self.apply(Event::Failed);
                    self.slot = None;
                    self.registry.expire_surplus_failed();
                }
                () = self.abandoned.cancelled() => {
                    self.reason = DestroyReason::NeverReady;
                    return;
                }
            }
        }
    }

    fn begin(
        &mut self,
        machine: &Arc<dyn Machine>,
        call_ended: &mpsc::Sender<()>,
        Beginning { counted, place }: Beginning,
    ) -> Result<Call, CallRefusal> {
        let permit = call_ended.clone().try_reserve_owned().map_err(|_| CallRefusal::Busy)?;
        self.environment.begin_call(now())?;
        self.save();
        Ok(Call {
            machine: Arc::clone(machine),
            environment: self.environment.clone(),
            refusals: Arc::clone(&self.refusals),
            memory_kills_told: Arc::clone(&self.memory_kills_told),
            ended: Some(permit),
            place: Some(place),
            _counted: counted,
        })
    }

    /// Stops the machine and refuses calls meanwhile.
    async fn release(&mut self, machine: &dyn Machine) {
        self.apply(Event::DestroyRequested);
        // Calls that wait for a place, or for their turn to install, learn of the destruction at once.
        self.places.close();
        self.installations.close();
        self.journal.note("being destroyed");
        let mut stop = machine.stop();
        let mut open = true;
        loop {
            tokio::select! {
                () = &mut stop => break,
                request = self.requests.recv(), if open => match request {
                    Some(Request::Begin(_, reply)) => {
                        let _ = reply.send(Err(CallRefusal::NotRunning { state: State::Destroying }));
                    }
                    Some(Request::Destroy(_, waiter)) => self.waiters.push(waiter),
                    Some(Request::Expire) => {}
                    None => open = false,
                },
            }
        }
        self.apply(Event::Released);
    }

    fn log(&self, console: Vec<String>) -> EnvironmentLog {
        EnvironmentLog {
            environment: self.environment.clone(),
            events: self.journal.events(),
            console,
            refused: self.refusals.count(),
            refused_last: self.refusals.last(),
        }
    }

    fn apply(&mut self, event: Event) {
        if let Err(refusal) = self.environment.apply(event, now()) {
            tracing::error!(?event, %refusal, "an event does not fit the state of an environment");
        }
        self.save();
    }

    fn save(&self) {
        self.registry.repository.save(self.environment.clone());
    }
}

/// The outcome of a start.
enum Boot {
    Started(Arc<dyn Machine>),
    Failed(StartFault),
    /// Contains the machine, if the machine became ready before the cancellation took effect.
    Cancelled(Option<Arc<dyn Machine>>),
}

/// Returns the time of tokio's clock, which tests can advance.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}
