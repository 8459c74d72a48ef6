// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Creates, lists and destroys environments, and destroys or suspends all environments when the server shuts down.
//!
//! One `driver` owns each environment. This module spawns the drivers and sends requests to them. If the caller
//! of `create` leaves before the result, the environment is destroyed. `lasting` has the environments that outlive
//! their machine.

pub mod lasting;

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
    driver::{Driver, Running},
    fault::{CallerFault, Fault, ServerFault},
    inbox::Inbox,
    installation_queue::{InstallationQueue, KilledInstallations, Turn},
    journal::EnvironmentLog,
    refusals::Refusals,
    registry::{Handle, Registry},
    request::{Beginning, Call, REQUESTS_MAX, Request},
    resume_note::Resumed,
    saving::{SavedState, Saving},
};
use crate::domain::{
    capabilities::AgentOrigin,
    egress::{Egress, Network, Policy, Refused},
    environment::{CALLS_MAX, Environment, NewEnvironment},
    environment_id::EnvironmentId,
    lifecycle::State,
    machine::{MachineSource, MachineSpec, Machines},
    principal::Principal,
    repository::{DestroyReason, Found, Slot},
    shared_limit::SharedLimit,
    stage::Stage,
};
use crate::{
    lost::{Lost, RunningIds},
    telemetry::STAGES,
};

/// The environments of this server.
pub struct Environments {
    registry: Arc<Registry>,
    machines: Arc<dyn Machines>,
    /// Maximum time from the start of the virtual machine to the agent's hello.
    boot_timeout: Duration,
    /// The server's network policy, which limits the network of every environment.
    policy: Policy,
    saving: Saving,
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
        let registry = Arc::new(Registry::new(limit, None, Vec::new()));
        let (saving, drivers, calls) = (Saving::default(), TaskTracker::new(), TaskTracker::new());
        Self { registry, machines, boot_timeout, policy, saving, callers, drivers, calls }
    }

    /// Lets environments outlive their machines, and the server: `running` has the ids of the running environments for
    /// the next server, and `lost` has those that an earlier server has lost.
    #[must_use]
    pub fn with_saving(self, saving: Saving, running: Option<RunningIds>, lost: Vec<Lost>) -> Self {
        let registry = Arc::new(Registry::new(self.registry.repository.limit(), running, lost));
        Self { registry, saving, ..self }
    }

    /// Creates an environment and waits until it accepts calls. `on_stage` is called with the stages of the start,
    /// except for stages that end before they can be reported.
    ///
    /// Dropping the future undoes the create.
    ///
    /// # Errors
    /// [`CallerFault::Capacity`] if all slots that the owner may take are taken, [`ServerFault::Start`] if the machine
    /// does not start.
    pub async fn create(&self, new: NewEnvironment, on_stage: impl Fn(Stage) + Send) -> Result<Created, Fault> {
        let _counted = self.calls.token();
        let slot = self.reserve(&new.owner)?;
        self.start(new, slot, Inherited::default(), on_stage).await
    }

    fn reserve(&self, owner: &Principal) -> Result<Slot, CallerFault> {
        Ok(self.registry.repository.reserve(owner, self.callers.count())?)
    }

    /// Starts the driver of a new environment, and waits until the environment accepts calls.
    async fn start(
        &self,
        new: NewEnvironment,
        slot: Slot,
        inherited: Inherited,
        on_stage: impl Fn(Stage) + Send,
    ) -> Result<Created, Fault> {
        let (id, owner) = (EnvironmentId::random(), new.owner.clone());
        let environment = Environment::create(id, new.clone(), SystemTime::now(), Instant::now().into_std());
        let (ready, mut outcome) = oneshot::channel();
        let abandoned = CancellationToken::new();
        let undo = abandoned.clone().drop_guard();
        let (driver, requests) = self.driver(environment, &new, slot, inherited, abandoned);
        let mut stages = driver.journal.stages();
        self.spawn_driver(driver, requests, |driver, machines| driver.run(machines, ready))?;
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
            Ok(Ok(Running { environment, agent_origin, has_resumed })) => {
                undo.disarm();
                Ok(Created { environment, agent_origin, memory: has_resumed })
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

    /// Creates the driver of an environment, and the sender of its requests.
    fn driver(
        &self,
        environment: Environment,
        new: &NewEnvironment,
        slot: Slot,
        inherited: Inherited,
        abandoned: CancellationToken,
    ) -> (Driver, mpsc::Sender<Request>) {
        let id = environment.id;
        let Inherited { state, killed_installations, memory_kills_told } = inherited;
        let (snapshot, files) = state.map_or((None, None), |SavedState { snapshot, files }| (Some(snapshot), files));
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        let refusals = Arc::new(Refusals::new(id));
        let driver = Driver {
            spec: self.spec(id, new, Arc::clone(&refusals)),
            environment,
            network: new.network.clone(),
            snapshot,
            files,
            slot: Some(slot),
            registry: Arc::clone(&self.registry),
            saving: self.saving.clone(),
            inbox: Inbox::new(receiver),
            refusals,
            journal: Arc::default(),
            places: Arc::new(Semaphore::new(CALLS_MAX)),
            memory_kills_told: Arc::new(memory_kills_told.into()),
            installations: Arc::new(InstallationQueue::after(killed_installations)),
            resume_note: Arc::default(),
            abandoned,
            reason: DestroyReason::NeverReady,
            is_doomed: false,
            waiters: Vec::new(),
            forks: Vec::new(),
            stopping: None,
            cut_off: CancellationToken::new(),
        };
        (driver, requests)
    }

    /// Registers an environment and spawns its driver.
    fn spawn_driver<F>(
        &self,
        driver: Driver,
        requests: mpsc::Sender<Request>,
        run: impl FnOnce(Driver, Arc<dyn Machines>) -> F,
    ) -> Result<(), CallerFault>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut drivers = self.registry.drivers();
        if drivers.closing {
            return Err(CallerFault::ShuttingDown);
        }
        let (id, is_suspended) = (driver.environment.id, driver.environment.state() == State::Suspended);
        self.registry.repository.save(driver.environment.clone());
        self.registry.set_running(&driver.environment, !is_suspended);
        let (refusals, journal) = (Arc::clone(&driver.refusals), Arc::clone(&driver.journal));
        let (places, installations) = (Arc::clone(&driver.places), Arc::clone(&driver.installations));
        let resume_note = Arc::clone(&driver.resume_note);
        let span = tracing::info_span!("environment", %id);
        let task = self.drivers.spawn(run(driver, Arc::clone(&self.machines)).instrument(span)).abort_handle();
        let handle = Handle { requests, task, refusals, journal, places, installations, resume_note };
        drivers.handles.insert(id, handle);
        Ok(())
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
    /// [`CallerFault::UnknownEnvironment`], unless the environment was destroyed recently;
    /// [`CallerFault::ShuttingDown`] if the server stops and leaves it to the next one; [`ServerFault::Destroy`] if it
    /// stays suspended.
    pub async fn destroy(&self, owner: &Principal, id: EnvironmentId) -> Result<(), Fault> {
        match self.find(owner, id) {
            Err(CallerFault::DestroyedEnvironment { .. }) => return Ok(()),
            found => found?,
        };
        if let Some(handle) = self.registry.handle(id) {
            let (waiter, done) = oneshot::channel();
            let _ = handle.requests.send(Request::Destroy(DestroyReason::Requested, waiter)).await;
            // A driver that ends without an answer has released all resources as well.
            done.await.unwrap_or(Ok(()))?;
        }
        match self.find(owner, id) {
            Err(fault @ CallerFault::ShuttingDown) => Err(fault.into()),
            Ok(_) | Err(_) => Ok(()),
        }
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
        let beginning = Beginning { counted, place, requested: Instant::now() };
        // If the driver has ended, `reply` is dropped, and `answer` fails below.
        let _ = handle.requests.send(Request::Begin(beginning, reply)).await;
        // A suspended environment comes back, within the time that its machines have to start.
        answer.await.unwrap_or_else(|_| Err(self.not_callable(owner, id).into()))
    }

    /// Returns the last return of a suspended environment that no result has told yet.
    #[must_use]
    pub fn untold_resume(&self, owner: &Principal, id: EnvironmentId) -> Option<Resumed> {
        self.find(owner, id).ok()?;
        self.registry.handle(id)?.resume_note.take()
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
            // It still exists, but not in this server.
            Found::Destroyed(DestroyReason::Suspended) => Err(CallerFault::ShuttingDown),
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
        self.drain(drain).await;
        self.destroy_all(release, DestroyReason::Shutdown).await;
    }

    async fn drain(&self, drain: Duration) {
        self.registry.drivers().closing = true;
        self.calls.close();
        if timeout(drain, self.calls.wait()).await.is_err() {
            tracing::warn!(calls = self.calls.len(), "the shutdown cuts off calls");
        }
    }

    async fn destroy_all(&self, release: Duration, reason: DestroyReason) {
        let handles: Vec<_> = self.registry.drivers().handles.values().cloned().collect();
        self.drivers.close();
        let everything = async {
            for handle in &handles {
                // The answer is not needed: the tracker waits for all drivers.
                let (waiter, _) = oneshot::channel();
                let _ = handle.requests.send(Request::Destroy(reason, waiter)).await;
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

/// A new environment that accepts calls.
#[derive(Clone, Debug)]
pub struct Created {
    pub environment: Environment,
    pub agent_origin: AgentOrigin,
    /// Whether the machine goes on with the memory of a saved or forked one.
    pub memory: bool,
}

/// The state that a new environment has from another one; by default none.
#[derive(Debug, Default)]
struct Inherited {
    state: Option<SavedState>,
    killed_installations: KilledInstallations,
    memory_kills_told: u64,
}
