// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The task that owns one environment, from the creation until all resources of the environment are released.
//!
//! # States
//!
//! A driver runs through phases. Each phase is a loop over the events that can happen in that phase. In the
//! diagram, the environment's state (see [`lifecycle`](crate::domain::lifecycle)) is in parentheses.
//!
//! ```text
//!   boot (creating) ──machine ready──▶ serve (running) ──destroy, idle, caller left──▶ release (destroying) ──▶ end
//!     │   │                              │  ▲ │  ▲                                              ▲        ▲
//!     │   │                              │  │ │  │ machine ended: stop it, free the slot,       │        │
//!     │   │                              │  │ └──┘ go on serving as a failed environment (error)│        │
//!     │   └─destroy, caller left: cancel the start; if the machine was ready all the same ───────┘        │
//!     └─start failed or cancelled: end   │  │                                                             │
//!                                        │  └──────────fork: stand still, go on─────┐                     │
//!      idle, server stops, destroy and   │  │                                       │                     │
//!      save: stand still (suspending)    │  ├─not saved: go on with the same state ─┘                     │
//!                                        ▼  │                                                             │
//!                          saved, machine ended ──────────destroy and save───────────────────────────────▶┤
//!                                        │  │                                                             │
//!                                        ▼  └─machine ready: remove the saved state                       │
//!   start of the server ──▶ rest (suspended) ──call──▶ resume (resuming)                                  │
//!                              │    ▲                     │                                               │
//!                              │    └──start failed───────┘                                               │
//!                              ├─destroy, too old: remove the saved state ────────────────────────────────┘
//!                              └─server stops: end, and leave the saved state to the next server
//! ```
//!
//! - **boot**: [`Machines::start`] runs. Begin requests are refused. A destroy request cancels the start, and so does a
//!   caller that leaves. The driver still waits for the end of the start, because until then a machine may exist.
//! - **serve**: calls begin and end. The phase lasts until the environment must be destroyed, or is suspended. If the
//!   machine ends by itself, the phase continues: the owner can still see the failed environment and read its log.
//! - **rest**: the environment has no machine. The first call, and others that come meanwhile, wait in the inbox until
//!   a
//!   machine has started from the saved state. Forks need no machine, only the saved state.
//! - **release**: the machine is stopped. Begin requests are refused; further destroy requests wait for the same end.
//!
//! While the environment stands still (`standstill`), no call runs, and all requests wait in the inbox, except that a
//! destroy request takes effect as soon as the machine goes on or has ended.
//!
//! # Ownership
//!
//! - The driver is the only writer of its [`Environment`]. After every change it saves a copy in the [`Registry`]. All
//!   other code reads that copy.
//! - The driver owns the [`Slot`] of its machine. The driver frees the slot only after the machine has stopped, so
//!   there are never more machines than slots. A suspended environment keeps its slot, so it can always come back.
//! - All other code sends requests through an `mpsc::Sender<Request>`. A [`Call`] contains the machine, and a permit
//!   for the message that reports the call's end. Calls do not delay a destroy: stopping the machine ends the calls.
//! - The caller of `create` holds a guard until it receives the result. Dropping the guard cancels `abandoned`, so a
//!   create that is dropped at any time leaves nothing behind.
//! - The saved state of a suspended environment exists from the end of its machine until the next machine is ready. No
//!   call runs while both exist.
//!
//! # The end
//!
//! The task may end by return, panic or abort. In each case, dropping the [`Driver`] first frees the slot, then removes
//! the environment from the registry, then wakes the callers that wait for the destruction. Because of this order, a
//! client that sees the destruction or a failed create can use the slot at once.

mod boot;
mod rest;
mod standstill;

use std::{
    future::pending,
    pin::pin,
    sync::{Arc, atomic::AtomicU64},
};

use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use self::{boot::Boot, rest::Place};
use super::{
    fault::{CallerFault, Fault},
    inbox::Inbox,
    installation_queue::InstallationQueue,
    journal::{EnvironmentLog, Journal},
    refusals::Refusals,
    registry::Registry,
    request::{Beginning, Call, ForkRequest, Request},
    resume_note::ResumeNote,
    saving::Saving,
};
use crate::{
    domain::{
        capabilities::AgentOrigin,
        egress::Policy,
        environment::{CALLS_MAX, CallRefusal, Environment},
        lifecycle::{Event, State},
        machine::{Machine, MachineSpec, Machines, Snapshot, StartFault},
        repository::{DestroyReason, Slot},
    },
    log_limit::{self, Kind},
    saved::OpenSaved,
};

pub(super) struct Driver {
    pub(super) environment: Environment,
    /// The environment's own network policy.
    pub(super) network: Option<Policy>,
    pub(super) spec: MachineSpec,
    /// The state that the next machine starts from, if not from the image.
    pub(super) snapshot: Option<Arc<dyn Snapshot>>,
    /// The saved files that the machine may use.
    pub(super) files: Option<Arc<OpenSaved>>,
    pub(super) slot: Option<Slot>,
    pub(super) registry: Arc<Registry>,
    pub(super) saving: Saving,
    pub(super) inbox: Inbox,
    pub(super) refusals: Arc<Refusals>,
    pub(super) journal: Arc<Journal>,
    pub(super) places: Arc<Semaphore>,
    pub(super) memory_kills_told: Arc<AtomicU64>,
    pub(super) installations: Arc<InstallationQueue>,
    pub(super) resume_note: Arc<ResumeNote>,
    /// Cancelled when the caller of `create` leaves before it receives the result.
    pub(super) abandoned: CancellationToken,
    pub(super) reason: DestroyReason,
    /// Whether the environment must be destroyed as soon as it no longer stands still.
    pub(super) is_doomed: bool,
    /// Callers that wait for the destruction.
    pub(super) waiters: Vec<oneshot::Sender<Result<(), Fault>>>,
    /// Forks that wait until no call runs. Each holds a slot of the server.
    pub(super) forks: Vec<ForkRequest>,
    /// Dropped when the environment is suspended, for which the shutdown waits.
    pub(super) stopping: Option<oneshot::Sender<()>>,
    /// Cancelled when the server stops and waits no longer for calls.
    pub(super) cut_off: CancellationToken,
}

/// The running environment, for the caller of `create`.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) environment: Environment,
    pub(super) agent_origin: AgentOrigin,
    /// Whether the machine goes on with the memory of another one.
    pub(super) has_resumed: bool,
}

/// The phases after the first start.
enum Phase {
    Serve(Arc<dyn Machine>),
    Rest(Place),
    /// The environment is destroyed, with its machine if it has one.
    Release(Option<Arc<dyn Machine>>),
    /// The server stops. The saved state is left to the next server.
    Leave,
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
            let _ = waiter.send(Ok(()));
        }
    }
}

impl Driver {
    /// Creates and runs the environment until it is destroyed. `ready` receives the outcome of the start, and is
    /// dropped without an outcome if the start is cancelled.
    pub(super) async fn run(
        mut self,
        machines: Arc<dyn Machines>,
        ready: oneshot::Sender<Result<Running, StartFault>>,
    ) {
        match self.boot(&*machines).await {
            Boot::Started(machine) => {
                let capabilities = machine.agent().capabilities();
                let agent_origin = capabilities.agent_origin;
                self.journal.set_machine(&machine);
                self.journal.note("running");
                self.apply(Event::Ready);
                let (environment, has_resumed) = (self.environment.clone(), machine.has_resumed());
                // If the caller has left, `abandoned` is cancelled, and serving ends at once.
                let _ = ready.send(Ok(Running { environment, agent_origin, has_resumed }));
                tracing::info!(agent = capabilities.agent_build, "environment is running");
                self.live(&*machines, Phase::Serve(machine)).await;
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
                    Some(machine) => self.release(Some(&*machine)).await,
                    None => self.apply(Event::Released),
                }
                // Records why the environment was destroyed before the caller of `create` asks for the reason.
                tracing::info!(reason = ?self.reason, "environment is destroyed");
                drop(self);
                drop(ready);
            }
        }
    }

    /// Runs an environment that an earlier server suspended, until it is destroyed.
    pub(super) async fn run_suspended(mut self, machines: Arc<dyn Machines>) {
        self.live(&*machines, Phase::Rest(Place::Store)).await;
    }

    async fn live(&mut self, machines: &dyn Machines, mut phase: Phase) {
        loop {
            phase = match phase {
                Phase::Serve(machine) => self.serve(&machine).await,
                Phase::Rest(saved) => self.rest(machines, saved).await,
                Phase::Release(machine) => {
                    self.release(machine.as_deref()).await;
                    tracing::info!(reason = ?self.reason, "environment is destroyed");
                    return;
                }
                Phase::Leave => {
                    tracing::info!("environment stays suspended");
                    return;
                }
            };
        }
    }

    /// Answers requests until the environment must be destroyed or is suspended.
    async fn serve(&mut self, machine: &Arc<dyn Machine>) -> Phase {
        let (call_ended, mut calls_ended) = mpsc::channel(CALLS_MAX);
        loop {
            if self.is_doomed {
                return Phase::Release(Some(Arc::clone(machine)));
            }
            if let Some(next) = self.stand_still_if_asked(machine).await {
                return next;
            }
            let runs = self.environment.state() == State::Running;
            let gone = async { if runs { machine.gone().await } else { pending().await } };
            tokio::select! {
                // A call that has ended is counted out before the call that gets its place begins.
                biased;
                Some(()) = calls_ended.recv() => {
                    self.environment.end_call(now());
                    self.save();
                }
                request = self.inbox.next() => match request {
                    Some(Request::Begin(beginning, reply)) => {
                        let call = self.begin(machine, &call_ended, beginning);
                        // If the caller has left, sending fails and drops the call. Dropping the call ends it.
                        let _ = reply.send(call);
                    }
                    Some(Request::Fork(fork)) => self.queue_fork(fork),
                    Some(Request::Save(name, reply)) => {
                        if let Some(next) = self.save_as(machine, name, reply).await {
                            return next;
                        }
                    }
                    Some(Request::Suspend(done)) => {
                        self.stopping = Some(done);
                        self.cut_off.cancel();
                    }
                    Some(Request::Destroy(reason, waiter)) => self.destroy(reason, waiter),
                    Some(Request::Expire) => {
                        if self.is_idle()
                            && let Some(next) = self.end_idle(machine).await
                        {
                            return next;
                        }
                    }
                    None => return Phase::Release(Some(Arc::clone(machine))),
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
                    return Phase::Release(Some(Arc::clone(machine)));
                }
            }
        }
    }

    fn begin(
        &mut self,
        machine: &Arc<dyn Machine>,
        call_ended: &mpsc::Sender<()>,
        Beginning { counted, place, requested }: Beginning,
    ) -> Result<Call, Fault> {
        if self.stopping.is_some() {
            return Err(CallerFault::ShuttingDown.into());
        }
        let busy = |_| self.refusal(CallRefusal::Busy);
        let permit = call_ended.clone().try_reserve_owned().map_err(busy)?;
        self.environment.begin_call(now()).map_err(|refusal| self.refusal(refusal))?;
        self.save();
        Ok(Call {
            machine: Arc::clone(machine),
            environment: self.environment.clone(),
            refusals: Arc::clone(&self.refusals),
            memory_kills_told: Arc::clone(&self.memory_kills_told),
            waited_for_machine: requested.elapsed(),
            cut_off: self.cut_off.clone(),
            ended: Some(permit),
            place: Some(place),
            _counted: counted,
        })
    }

    fn refusal(&self, refusal: CallRefusal) -> Fault {
        let id = self.environment.id;
        match refusal {
            CallRefusal::Busy => CallerFault::Busy { id, waited: std::time::Duration::ZERO }.into(),
            CallRefusal::NotRunning { state } => CallerFault::NotRunning { id, state }.into(),
        }
    }

    /// Records that the environment must be destroyed.
    fn doom(&mut self, reason: DestroyReason) {
        if !self.is_doomed {
            self.reason = reason;
        }
        self.is_doomed = true;
    }

    /// Records that the environment must be destroyed, and who waits for that.
    fn destroy(&mut self, reason: DestroyReason, waiter: oneshot::Sender<Result<(), Fault>>) {
        self.doom(reason);
        self.waiters.retain(|waiter| !waiter.is_closed());
        self.waiters.push(waiter);
    }

    /// Stops the machine, removes the saved state, and refuses calls meanwhile.
    async fn release(&mut self, machine: Option<&dyn Machine>) {
        self.apply(Event::DestroyRequested);
        // Calls that wait for a place, or for their turn to install, learn of the destruction at once.
        self.places.close();
        self.installations.close();
        self.forks.clear();
        drop(self.inbox.take_held());
        self.journal.note("being destroyed");
        let mut stop = pin!(async {
            if let Some(machine) = machine {
                machine.stop().await;
            }
        });
        loop {
            tokio::select! {
                () = &mut stop => break,
                request = self.inbox.arrival() => match request {
                    Some(Request::Destroy(_, waiter)) => self.waiters.push(waiter),
                    Some(other) => self.refuse(other),
                    None => {}
                },
            }
        }
        self.apply(Event::Released);
    }

    /// Refuses a request, because of the environment's state.
    fn refuse(&self, request: Request) {
        let fault = || self.refusal(CallRefusal::NotRunning { state: self.environment.state() });
        // The caller may have left.
        match request {
            Request::Begin(_, reply) => drop(reply.send(Err(fault()))),
            Request::Fork(fork) => drop(fork.reply.send(Err(fault()))),
            Request::Save(_, reply) => drop(reply.send(Err(fault()))),
            Request::Suspend(_) | Request::Destroy(..) | Request::Expire => {}
        }
    }

    /// Whether the environment has reached its idle timeout.
    fn is_idle(&self) -> bool {
        self.environment.idle_deadline().is_some_and(|deadline| deadline <= now())
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

/// Returns the time of tokio's clock, which tests can advance.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}
