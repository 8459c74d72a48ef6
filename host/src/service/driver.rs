// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The task that owns one environment: it starts its machine, hears what is asked of it, and ends it.
//!
//! ```text
//!   boot ──machine──▶ serve ──destroy, idle──▶ release ──▶ (forgotten, slot free, waiters told)
//!     │                 │  machine gone: stop it, free the slot, stay to be seen
//!     └─ failed, caller gone, destroy ────────────▲
//! ```
//!
//! Nothing else writes the environment's state; the repository gets a copy after every change. When this task ends, for
//! whatever reason, the environment is forgotten and its slot is free.

use std::{future::pending, sync::Arc};

use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::task_tracker::TaskTrackerToken};

use super::{
    environments::{EnvironmentLog, Registry},
    journal::Journal,
    refusals::Refusals,
};
use crate::{
    causes::chain,
    domain::{
        environment::{CallRefusal, Environment},
        lifecycle::{Event, State},
        ports::{AgentOrigin, Machine, MachineSpec, Machines, Stage, StartFault},
        repository::{DestroyReason, Slot},
    },
};

/// Requests that can wait for one driver; whoever sends more waits itself.
pub(super) const REQUESTS_MAX: usize = 16;

/// What can be asked of a driver.
#[derive(Debug)]
pub(super) enum Request {
    /// Begin a call, which the shutdown waits for.
    Begin(TaskTrackerToken, oneshot::Sender<Result<Call, CallRefusal>>),
    /// Destroy the environment; the answer comes when nothing of it is left.
    Destroy(DestroyReason, oneshot::Sender<()>),
    /// Destroy it if it has been idle for its time.
    Expire,
}

/// A call that runs in an environment. The environment does not idle until this is dropped, and the shutdown waits for
/// it.
pub(super) struct Call {
    /// The machine to call.
    pub(super) machine: Arc<dyn Machine>,
    /// The environment as it was when the call began.
    pub(super) environment: Environment,
    /// What the environment was refused of the network, which goes on being counted.
    pub(super) refusals: Arc<Refusals>,
    ended: Option<mpsc::OwnedPermit<()>>,
    _counted: TaskTrackerToken,
}

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Call").field("environment", &self.environment.id).finish_non_exhaustive()
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // The room for this message was reserved when the call began, so it is never lost.
        if let Some(ended) = self.ended.take() {
            ended.send(());
        }
    }
}

/// What a driver starts with.
pub(super) struct Driver {
    pub(super) environment: Environment,
    pub(super) spec: MachineSpec,
    pub(super) slot: Option<Slot>,
    pub(super) registry: Arc<Registry>,
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) refusals: Arc<Refusals>,
    pub(super) journal: Arc<Journal>,
    /// Cancelled when the caller that wants the environment is gone before it has heard of it.
    pub(super) abandoned: CancellationToken,
    pub(super) reason: DestroyReason,
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
            // Who asked may have gone meanwhile.
            let _ = waiter.send(());
        }
    }
}

impl Driver {
    /// Drives the environment to its end. `ready` hears whether its machine started.
    pub(super) async fn run(
        mut self,
        machines: Arc<dyn Machines>,
        stages: Box<dyn Fn(Stage) + Send + Sync>,
        ready: oneshot::Sender<Result<(Environment, AgentOrigin), StartFault>>,
    ) {
        let journal = Arc::clone(&self.journal);
        let noted = move |stage| {
            journal.note_stage(stage);
            stages(stage);
        };
        let booted = self.boot(&*machines, &noted).await;
        drop(noted);
        match booted {
            Boot::Started(machine) => {
                let agent_origin = machine.capabilities().agent_origin;
                self.environment.agent_origin = Some(agent_origin);
                self.journal.set_machine(&machine);
                self.journal.note("running");
                self.apply(Event::Ready);
                // If the caller is gone, `abandoned` is cancelled, and serving ends at once.
                let _ = ready.send(Ok((self.environment.clone(), agent_origin)));
                tracing::info!(agent = machine.capabilities().agent_build, "environment is running");
                self.serve(&machine).await;
                self.release(&*machine).await;
            }
            Boot::Failed(fault) => {
                self.journal.note(&chain(&fault));
                self.apply(Event::Failed);
                self.apply(Event::DestroyRequested);
                self.apply(Event::Released);
                self.registry.remember_failed_start(self.log(fault.console.clone()));
                drop(self);
                // Only now: whoever hears of the failure finds the slot free.
                let _ = ready.send(Err(fault));
                return;
            }
            Boot::Unwanted(Some(machine)) => self.release(&*machine).await,
            Boot::Unwanted(None) => self.apply(Event::Released),
        }
        tracing::info!(reason = ?self.reason, "environment is destroyed");
    }

    /// Starts the machine, or has its start given up if nobody wants it any more. Until the start has come to its end
    /// either way, the machine may be there, and its slot is taken.
    async fn boot(&mut self, machines: &dyn Machines, stages: &(dyn Fn(Stage) + Send + Sync)) -> Boot {
        let spec = self.spec.clone();
        let unwanted = CancellationToken::new();
        let abandoned = self.abandoned.clone();
        let mut start = machines.start(&spec, stages, Box::pin(unwanted.cancelled()));
        let mut more = true;
        loop {
            let wanted = !unwanted.is_cancelled();
            tokio::select! {
                outcome = &mut start => return match outcome {
                    outcome if !wanted => Boot::Unwanted(outcome.ok()),
                    Ok(machine) => Boot::Started(machine),
                    Err(fault) => Boot::Failed(fault),
                },
                () = abandoned.cancelled(), if wanted => self.give_up(&unwanted),
                request = self.requests.recv(), if more => match request {
                    Some(Request::Begin(_, reply)) => {
                        let _ = reply.send(Err(CallRefusal::NotRunning { state: self.environment.state() }));
                    }
                    Some(Request::Destroy(reason, waiter)) => {
                        self.waiters.push(waiter);
                        if wanted {
                            self.reason = reason;
                            self.give_up(&unwanted);
                        }
                    }
                    Some(Request::Expire) => {}
                    None => {
                        more = false;
                        self.give_up(&unwanted);
                    }
                },
            }
        }
    }

    fn give_up(&mut self, unwanted: &CancellationToken) {
        self.apply(Event::DestroyRequested);
        unwanted.cancel();
    }

    /// Answers requests until the environment is to be destroyed.
    async fn serve(&mut self, machine: &Arc<dyn Machine>) {
        let (call_ended, mut calls_ended) = mpsc::channel(crate::domain::environment::CALLS_MAX);
        loop {
            let runs = self.environment.state() == State::Running;
            let gone = async { if runs { machine.gone().await } else { pending().await } };
            tokio::select! {
                request = self.requests.recv() => match request {
                    Some(Request::Begin(counted, reply)) => {
                        let call = self.begin(machine, &call_ended, counted);
                        // If nobody waits for the call any more, dropping it ends it.
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
                    tracing::error!(reason, "machine of an environment is gone");
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

    /// Ends the machine, while requests hear that it is too late for them.
    async fn release(&mut self, machine: &dyn Machine) {
        self.apply(Event::DestroyRequested);
        self.journal.note("being destroyed");
        let mut stop = machine.stop();
        let mut more = true;
        loop {
            tokio::select! {
                () = &mut stop => break,
                request = self.requests.recv(), if more => match request {
                    Some(Request::Begin(_, reply)) => {
                        let _ = reply.send(Err(CallRefusal::NotRunning { state: State::Destroying }));
                    }
                    Some(Request::Destroy(_, waiter)) => self.waiters.push(waiter),
                    Some(Request::Expire) => {}
                    None => more = false,
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

enum Boot {
    Started(Arc<dyn Machine>),
    Failed(StartFault),
    /// With the machine if it was ready all the same.
    Unwanted(Option<Arc<dyn Machine>>),
}

/// The runtime's clock, so that tests can move it.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}
