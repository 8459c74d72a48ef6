// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Creates, lists and destroys environments, and destroys all environments when the server shuts down.
//!
//! One `driver` owns each environment. This module spawns the drivers and sends requests to them. If the caller
//! of `create` leaves before the result, the environment is destroyed.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use super::{
    callers::Callers,
    driver::Driver,
    fault::{CallerFault, Fault, ServerFault},
    installation_queue::{InstallationQueue, Turn},
    journal::{EnvironmentLog, Journal},
    refusals::Refusals,
    registry::{Handle, Registry},
    request::{Beginning, Call, REQUESTS_MAX, Request},
};
use crate::domain::{
    capabilities::AgentOrigin,
    egress::{Egress, Network, Policy, Refused},
    environment::{CALLS_MAX, CallRefusal, Environment, NewEnvironment},
    environment_id::EnvironmentId,
    lifecycle::State,
    machine::{MachineSource, MachineSpec, Machines},
    principal::Principal,
    repository::{DestroyReason, Found},
    shared_limit::SharedLimit,
    stage::Stage,
};
use crate::telemetry::STAGES;

/// The environments of this server.
pub struct Environments {
    registry: Arc<Registry>,
    machines: Arc<dyn Machines>,
    /// Maximum time from the start of the virtual machine to the agent's hello.
    boot_timeout: Duration,
    /// The server's network policy, which limits the network of every environment.
    policy: Policy,
    callers: Callers,
    /// Counts the drivers; a shutdown waits for them.
    drivers: TaskTracker,
    /// Counts the calls, including creates; a shutdown waits for them.
    calls: TaskTracker,
}

impl std::fmt::Debug for Environments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Environments").field("registry", &self.registry).finish_non_exhaustive()
    }
}

impl Environments {
    /// Creates the service, with a limit on the environments. `policy` limits their networks.
    #[must_use]
    pub fn new(
        machines: Arc<dyn Machines>,
        boot_timeout: Duration,
        policy: Policy,
        limit: SharedLimit,
        callers: Callers,
    ) -> Self {
        let registry = Arc::new(Registry::new(limit));
        let (drivers, calls) = (TaskTracker::new(), TaskTracker::new());
        Self { registry, machines, boot_timeout, policy, callers, drivers, calls }
    }

    /// Creates an environment and waits until it accepts calls. Returns the environment and the origin of its agent.
    /// `on_stage` is called with the stages of the start, except for stages that end before they can be reported.
    ///
    /// Dropping the future undoes the create.
    ///
    /// # Errors
    /// [`CallerFault::Capacity`] if all slots that the owner may take are taken, [`ServerFault::Start`] if the machine
    /// does not start.
    pub async fn create(
        &self,
        new: NewEnvironment,
        on_stage: impl Fn(Stage) + Send,
    ) -> Result<(Environment, AgentOrigin), Fault> {
        let _counted = self.calls.token();
        let slot = self.registry.repository.reserve(&new.owner, self.callers.count()).map_err(CallerFault::from)?;
        let id = EnvironmentId::random();
        let refusals = Arc::new(Refusals::new(id));
        let journal = Arc::new(Journal::default());
        let places = Arc::new(Semaphore::new(CALLS_MAX));
        let installations = Arc::<InstallationQueue>::default();
        let mut stages = journal.stages();
        let spec = self.spec(id, &new, Arc::clone(&refusals));
        let owner = new.owner.clone();
        let environment = Environment::create(id, new, SystemTime::now(), Instant::now().into_std());
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        let (ready, mut outcome) = oneshot::channel();
        let abandoned = CancellationToken::new();
        let undo = abandoned.clone().drop_guard();
        {
            let mut drivers = self.registry.drivers();
            if drivers.closing {
                return Err(CallerFault::ShuttingDown.into());
            }
            self.registry.repository.save(environment.clone());
            let driver = Driver {
                environment,
                spec,
                slot: Some(slot),
                registry: Arc::clone(&self.registry),
                requests: receiver,
                refusals: Arc::clone(&refusals),
                journal: Arc::clone(&journal),
                places: Arc::clone(&places),
                memory_kills_told: Arc::default(),
                installations: Arc::clone(&installations),
                abandoned,
                reason: DestroyReason::NeverReady,
                waiters: Vec::new(),
            };
            let span = tracing::info_span!("environment", %id);
            let run = driver.run(Arc::clone(&self.machines), ready).instrument(span);
            let task = self.drivers.spawn(run).abort_handle();
            drivers.handles.insert(id, Handle { requests, task, refusals, journal, places, installations });
        }
        let outcome = loop {
            tokio::select! {
                outcome = &mut outcome => break outcome,
                Ok(()) = stages.changed() => {
                    let stage = *stages.borrow_and_update();
                    stage.map(&on_stage);
                }
            }
        };
        match outcome {
            Ok(Ok(running)) => {
                undo.disarm();
                Ok(running)
            }
            Ok(Err(source)) => Err(ServerFault::Start { id, source: Box::new(source) }.into()),
            Err(_) => match self.find(&owner, id) {
                Err(fault @ CallerFault::DestroyedEnvironment { reason, .. })
                    if reason != DestroyReason::NeverReady =>
                {
                    Err(fault.into())
                }
                Ok(_) | Err(_) => Err(ServerFault::Unowned { id }.into()),
            },
        }
    }

    fn spec(&self, id: EnvironmentId, new: &NewEnvironment, refusals: Arc<Refusals>) -> MachineSpec {
        let egress = Egress::new(self.policy.clone(), new.network.clone());
        let network = (!egress.is_none())
            .then(|| Network { egress, on_refusal: Arc::new(move |refused| refusals.note(refused)) });
        MachineSpec {
            id,
            owner: new.owner.clone(),
            image: new.image.clone(),
            source: MachineSource::Image,
            pull_rights: new.pull_rights,
            cpus: new.size.cpus,
            memory_mib: new.size.memory_mib,
            disk_mib: new.size.disk_mib,
            boot_timeout: self.boot_timeout,
            network,
        }
    }

    /// Returns the number of connections and names that an environment's network policy refused, and the latest
    /// refusal.
    #[must_use]
    pub fn egress_refused(&self, id: EnvironmentId) -> (u64, Option<Refused>) {
        let handle = self.registry.handle(id);
        handle.map_or((0, None), |handle| (handle.refusals.count(), handle.refusals.last()))
    }

    /// Returns how many background processes of an environment were killed for want of memory.
    #[must_use]
    pub fn background_memory_kills(&self, id: EnvironmentId) -> u64 {
        self.registry.handle(id).map_or(0, |handle| handle.journal.background_memory_kills())
    }

    /// Returns the log of an environment in any state, even if it failed to start. Reading the log does not count as a
    /// call.
    ///
    /// # Errors
    /// [`CallerFault::UnknownEnvironment`] or [`CallerFault::DestroyedEnvironment`].
    pub fn log(&self, owner: &Principal, id: EnvironmentId) -> Result<EnvironmentLog, CallerFault> {
        let environment = match self.find(owner, id) {
            Err(fault @ CallerFault::DestroyedEnvironment { .. }) => {
                return self.registry.failed_start(owner, id).ok_or(fault);
            }
            found => found?,
        };
        // Without a handle, the environment has just been destroyed.
        let journal = self.registry.handle(id).map(|handle| handle.journal).unwrap_or_default();
        let (refused, refused_last) = self.egress_refused(id);
        Ok(EnvironmentLog { environment, events: journal.events(), console: journal.console(), refused, refused_last })
    }

    /// Destroys an environment in any state, and waits until all its resources are released. Idempotent.
    ///
    /// # Errors
    /// [`CallerFault::UnknownEnvironment`], unless the environment was destroyed recently.
    pub async fn destroy(&self, owner: &Principal, id: EnvironmentId) -> Result<(), Fault> {
        match self.find(owner, id) {
            Err(CallerFault::DestroyedEnvironment { .. }) => return Ok(()),
            found => found?,
        };
        let Some(handle) = self.registry.handle(id) else { return Ok(()) };
        let (waiter, done) = oneshot::channel();
        if handle.requests.send(Request::Destroy(DestroyReason::Requested, waiter)).await.is_ok() {
            // A driver that ends without an answer has released all resources as well.
            let _ = done.await;
        }
        Ok(())
    }

    /// Returns an owner's environments, oldest first.
    #[must_use]
    pub fn list(&self, owner: &Principal) -> Vec<Environment> {
        self.registry.repository.list(owner)
    }

    /// Begins a call in an environment. If the environment runs its maximum of calls, waits for a place, in order and
    /// at most `within`. The environment is not idle until the call is dropped.
    #[tracing::instrument(target = STAGES, level = "debug", skip_all)]
    pub(super) async fn begin(&self, owner: &Principal, id: EnvironmentId, within: Duration) -> Result<Call, Fault> {
        let counted = self.calls.token();
        if self.registry.drivers().closing {
            return Err(CallerFault::ShuttingDown.into());
        }
        self.find(owner, id)?;
        let handle = self.registry.handle(id).ok_or_else(|| self.not_callable(owner, id))?;
        let place = timeout(within, handle.places.acquire_owned()).await;
        let busy = |_elapsed| CallerFault::Busy { id, waited: within };
        let place = place.map_err(busy)?.map_err(|_closed| self.not_callable(owner, id))?;
        let (reply, answer) = oneshot::channel();
        // If the driver has ended, `reply` is dropped, and `answer` fails below.
        let _ = handle.requests.send(Request::Begin(Beginning { counted, place }, reply)).await;
        match answer.await {
            Ok(Ok(call)) => Ok(call),
            Ok(Err(CallRefusal::Busy)) => Err(CallerFault::Busy { id, waited: Duration::ZERO }.into()),
            Ok(Err(CallRefusal::NotRunning { state })) => Err(CallerFault::NotRunning { id, state }.into()),
            Err(_) => Err(self.not_callable(owner, id).into()),
        }
    }

    /// Waits, in order and at most `within`, until no other installation runs in an environment.
    pub(super) async fn installation_turn(
        &self,
        owner: &Principal,
        id: EnvironmentId,
        within: Duration,
    ) -> Result<Turn, Fault> {
        let _counted = self.calls.token();
        if self.registry.drivers().closing {
            return Err(CallerFault::ShuttingDown.into());
        }
        self.find(owner, id)?;
        let handle = self.registry.handle(id).ok_or_else(|| self.not_callable(owner, id))?;
        let turn = timeout(within, handle.installations.turn()).await;
        let turn = turn.map_err(|_elapsed| CallerFault::InstallationWaited { after: within })?;
        Ok(turn.ok_or_else(|| self.not_callable(owner, id))?)
    }

    /// Runs the rest of a call in a task of its own, which continues if the caller leaves. A shutdown waits for the
    /// task as for a call. The future must end when the machine of its call ends.
    pub(super) fn spawn<F>(&self, rest_of_call: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.calls.spawn(rest_of_call)
    }

    pub(super) fn is_running(&self, owner: &Principal, id: EnvironmentId) -> bool {
        self.find(owner, id).is_ok_and(|environment| environment.state() == State::Running)
    }

    /// Returns the fault of a call after its machine has ended.
    pub(super) fn ended_during_call(&self, owner: &Principal, id: EnvironmentId) -> CallerFault {
        match self.find(owner, id).map(|environment| environment.state()) {
            Ok(State::Destroying | State::Destroyed) | Err(CallerFault::DestroyedEnvironment { .. }) => {
                CallerFault::DestroyedUnderCall { id }
            }
            Ok(_) | Err(_) => self.not_callable(owner, id),
        }
    }

    /// Returns the fault of a call to an environment that accepts no calls.
    fn not_callable(&self, owner: &Principal, id: EnvironmentId) -> CallerFault {
        match self.find(owner, id).map(|environment| environment.state()) {
            // The machine has ended, but its driver has not noticed yet.
            Ok(State::Running) => CallerFault::NotRunning { id, state: State::Error },
            Ok(state) => CallerFault::NotRunning { id, state },
            Err(fault) => fault,
        }
    }

    fn find(&self, owner: &Principal, id: EnvironmentId) -> Result<Environment, CallerFault> {
        match self.registry.repository.find(owner, id) {
            Found::Known(environment) => Ok(*environment),
            Found::Destroyed(reason) => Err(CallerFault::DestroyedEnvironment { id, reason }),
            Found::Unknown => Err(CallerFault::UnknownEnvironment { id, is_local: *owner == Principal::local() }),
        }
    }

    /// Asks every driver to destroy its environment if the environment has reached its idle timeout.
    pub fn expire_idle(&self) {
        let drivers: Vec<_> = self.registry.drivers().handles.values().map(|handle| handle.requests.clone()).collect();
        for requests in drivers {
            // An environment with a full queue is not idle.
            let _ = requests.try_send(Request::Expire);
        }
    }

    /// Refuses new calls, waits up to `drain` for running calls, then destroys all environments within `release`.
    pub async fn shut_down(&self, drain: Duration, release: Duration) {
        self.registry.drivers().closing = true;
        self.calls.close();
        if timeout(drain, self.calls.wait()).await.is_err() {
            tracing::warn!(calls = self.calls.len(), "the shutdown cuts off calls");
        }
        let handles: Vec<_> = self.registry.drivers().handles.values().cloned().collect();
        self.drivers.close();
        let everything = async {
            for handle in &handles {
                // The answer is not needed: the tracker waits for all drivers.
                let (waiter, _) = oneshot::channel();
                let _ = handle.requests.send(Request::Destroy(DestroyReason::Shutdown, waiter)).await;
            }
            self.drivers.wait().await;
        };
        if timeout(release, everything).await.is_err() {
            tracing::error!(drivers = self.drivers.len(), "the shutdown aborts the tasks of environments");
            handles.iter().for_each(|handle| handle.task.abort());
            self.drivers.wait().await;
        }
    }
}
