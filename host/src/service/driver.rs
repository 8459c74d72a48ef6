// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The task that owns one environment, from its creation until everything of it is released.
//!
//! # States
//!
//! A driver runs through three phases. Each one is a loop over the events that can happen in it; the environment's
//! state (see [`lifecycle`](crate::domain::lifecycle)) is in parentheses.
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
//! - **boot**: [`Machines::start`] runs. Begin requests are refused. A destroy request, or a caller that left, cancels
//!   the start; the driver still waits for the start to end, because until then a machine may exist.
//! - **serve**: calls begin and end. The phase lasts until the environment is to be destroyed. A machine that ends by
//!   itself does not end the phase: its owner can still see the failed environment and read its log.
//! - **release**: the machine is stopped. Begin requests are refused, further destroy requests wait for the same end.
//!
//! # Ownership
//!
//! - The driver is the only writer of its [`Environment`]. After every change it saves a copy in the
//!   [`Registry`], from which everything else reads.
//! - The driver holds the [`Slot`] of its machine. It frees the slot once the machine is stopped, never before, so
//!   there are never more machines than slots.
//! - Everyone else holds an `mpsc::Sender<Request>`. A [`Call`] holds the machine, and a permit for the message with
//!   which it reports its end. Calls do not block a destroy: stopping the machine ends them.
//! - The caller of the create holds the guard of `abandoned` until it has the result, so a create that is dropped at
//!   any time leaves nothing behind.
//!
//! # The end
//!
//! However the task ends, by return, panic or abort, dropping the [`Driver`] frees the slot, removes the environment
//! from the registry, and then wakes those who wait for its destruction. In this order: a client that sees the
//! destruction, or a failed create, can use the slot at once.

use std::{future::pending, sync::Arc};

use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::task_tracker::TaskTrackerToken};

use super::{
    journal::{EnvironmentLog, Journal},
    refusals::Refusals,
    registry::Registry,
    request::{Call, Request},
};
use crate::{
    causes::chain,
    domain::{
        capabilities::AgentOrigin,
        environment::{CALLS_MAX, CallRefusal, Environment},
        lifecycle::{Event, State},
        machine::{Machine, MachineSpec, Machines, StartFault},
        repository::{DestroyReason, Slot},
    },
};

/// One environment, and all that its driver needs.
pub(super) struct Driver {
    pub(super) environment: Environment,
    pub(super) spec: MachineSpec,
    pub(super) slot: Option<Slot>,
    pub(super) registry: Arc<Registry>,
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) refusals: Arc<Refusals>,
    pub(super) journal: Arc<Journal>,
    /// Cancelled when the caller of the create leaves before it has the result.
    pub(super) abandoned: CancellationToken,
    pub(super) reason: DestroyReason,
    /// Callers that wait for the destruction.
    pub(super) waiters: Vec<oneshot::Sender<()>>,
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.slot = None;
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
    /// Runs the environment to its end. `ready` gets the outcome of the start.
    pub(super) async fn run(
        mut self,
        machines: Arc<dyn Machines>,
        ready: oneshot::Sender<Result<(Environment, AgentOrigin), StartFault>>,
    ) {
        match self.boot(&*machines).await {
            Boot::Started(machine) => {
                let capabilities = machine.agent().capabilities();
                let agent_origin = capabilities.agent_origin;
                self.environment.agent_origin = Some(agent_origin);
                self.journal.set_machine(&machine);
                self.journal.note("running");
                self.apply(Event::Ready);
                // If the caller has left, `abandoned` is cancelled, and serving ends at once.
                let _ = ready.send(Ok((self.environment.clone(), agent_origin)));
                tracing::info!(agent = capabilities.agent_build, "environment is running");
                self.serve(&machine).await;
                self.release(&*machine).await;
            }
            Boot::Failed(fault) => {
                self.journal.note(&chain(&fault));
                self.apply(Event::Failed);
                self.apply(Event::DestroyRequested);
                self.apply(Event::Released);
                self.registry.remember_failed_start(self.log(fault.console.clone()));
                // The slot is free before the caller sees the failure.
                drop(self);
                let _ = ready.send(Err(fault));
                return;
            }
            Boot::Cancelled(Some(machine)) => self.release(&*machine).await,
            Boot::Cancelled(None) => self.apply(Event::Released),
        }
        tracing::info!(reason = ?self.reason, "environment is destroyed");
    }

    /// Starts the machine, or cancels its start when the environment is destroyed or abandoned meanwhile. Returns only
    /// once the start has ended either way: until then the machine may exist, and needs its slot.
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

    /// Answers requests until the environment is to be destroyed.
    async fn serve(&mut self, machine: &Arc<dyn Machine>) {
        let (call_ended, mut calls_ended) = mpsc::channel(CALLS_MAX);
        loop {
            let runs = self.environment.state() == State::Running;
            let gone = async { if runs { machine.gone().await } else { pending().await } };
            tokio::select! {
                request = self.requests.recv() => match request {
                    Some(Request::Begin(counted, reply)) => {
                        let call = self.begin(machine, &call_ended, counted);
                        // If the caller has left, the call is dropped here, which ends it.
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
                Some(()) = calls_ended.recv() => {
                    self.environment.end_call(now());
                    self.save();
                }
                reason = gone => {
                    tracing::error!(reason, "the machine of an environment ended");
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
        counted: TaskTrackerToken,
    ) -> Result<Call, CallRefusal> {
        let permit = call_ended.clone().try_reserve_owned().map_err(|_| CallRefusal::Busy)?;
        self.environment.begin_call(now())?;
        self.save();
        Ok(Call {
            machine: Arc::clone(machine),
            environment: self.environment.clone(),
            refusals: Arc::clone(&self.refusals),
            ended: Some(permit),
            _counted: counted,
        })
    }

    /// Stops the machine and refuses calls meanwhile.
    async fn release(&mut self, machine: &dyn Machine) {
        self.apply(Event::DestroyRequested);
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
    /// With the machine, if it became ready before the cancellation took effect.
    Cancelled(Option<Arc<dyn Machine>>),
}

/// The runtime's clock, which tests can move.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}
