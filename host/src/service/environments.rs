// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Makes, lists and destroys environments, and ends them all when the server ends.
//!
//! It spawns one [`driver`](super::driver) an environment and keeps the way to reach it. A create whose caller goes
//! away is undone.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{mpsc, oneshot},
    task::AbortHandle,
    time::{Instant, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use super::{
    driver::{Call, Driver, REQUESTS_MAX, Request},
    fault::{CallerFault, Fault, ServerFault},
    journal::{Event, Journal},
    refusals::Refusals,
};
use crate::domain::{
    egress::{Egress, Network, Policy, Refused},
    environment::{CallRefusal, Environment, EnvironmentId, NewEnvironment},
    lifecycle::State,
    ports::{AgentOrigin, MachineSpec, Machines, Stage},
    principal::Principal,
    repository::{DestroyReason, Found, Repository},
};
use crate::mutex::lock;
use crate::telemetry::STAGES;

/// What every machine of this server is given.
#[derive(Clone, Copy, Debug)]
pub struct MachineSize {
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Scratch disk in MiB.
    pub disk_mib: u32,
    /// From the start of the virtual machine to the agent's hello.
    pub boot_timeout: Duration,
}

/// Logs of failed starts that are kept to be read; each has a screenful of lines. The oldest goes of who has most.
const FAILED_STARTS_MAX: usize = 32;

/// The environments of this server.
pub struct Environments {
    registry: Arc<Registry>,
    machines: Arc<dyn Machines>,
    size: MachineSize,
    /// What any environment may reach.
    policy: Policy,
    /// Counts the drivers, so that the shutdown can wait for them.
    drivers: TaskTracker,
    /// Counts the calls, creates included.
    calls: TaskTracker,
}

impl std::fmt::Debug for Environments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Environments").field("registry", &self.registry).finish_non_exhaustive()
    }
}

/// What is known of the environments, and how to reach the tasks that own them.
#[derive(Debug)]
pub(super) struct Registry {
    pub(super) repository: Repository,
    reach: Mutex<Reach>,
    failed_starts: Mutex<VecDeque<EnvironmentLog>>,
}

#[derive(Debug, Default)]
struct Reach {
    closing: bool,
    drivers: HashMap<EnvironmentId, Handle>,
}

#[derive(Clone, Debug)]
struct Handle {
    requests: mpsc::Sender<Request>,
    task: AbortHandle,
    refusals: Arc<Refusals>,
    journal: Arc<Journal>,
}

/// What is to be known of an environment beside its files and programs.
#[derive(Clone, Debug)]
pub struct EnvironmentLog {
    /// As it is now.
    pub environment: Environment,
    /// What happened to it, oldest first.
    pub events: Vec<Event>,
    /// The last that its machine printed, line by line.
    pub console: Vec<String>,
    /// How often it was refused what it wanted to reach.
    pub refused: u64,
    /// What the latest of these was.
    pub refused_last: Option<Refused>,
}

impl Registry {
    fn reach(&self) -> MutexGuard<'_, Reach> {
        lock(&self.reach)
    }

    fn requests(&self, id: EnvironmentId) -> Option<mpsc::Sender<Request>> {
        self.reach().drivers.get(&id).map(|handle| handle.requests.clone())
    }

    /// Called by a driver that ends.
    pub(super) fn forget(&self, id: EnvironmentId, reason: DestroyReason) {
        self.repository.remove(id, reason);
        self.reach().drivers.remove(&id);
    }

    /// Keeps what is known of an environment whose machine did not start: nothing else of it is left to be seen.
    pub(super) fn remember_failed_start(&self, log: EnvironmentLog) {
        let mut failed = lock(&self.failed_starts);
        failed.push_back(log);
        if failed.len() > FAILED_STARTS_MAX {
            let of = |owner: &Principal| failed.iter().filter(|log| log.environment.owner == *owner).count();
            let most = failed.iter().map(|log| of(&log.environment.owner)).max();
            let surplus = failed.iter().position(|log| Some(of(&log.environment.owner)) == most);
            surplus.and_then(|place| failed.remove(place));
        }
    }

    fn failed_start(&self, owner: &Principal, id: EnvironmentId) -> Option<EnvironmentLog> {
        let failed = lock(&self.failed_starts);
        failed.iter().find(|log| log.environment.id == id && log.environment.owner == *owner).cloned()
    }

    /// Lets go of the oldest failed environment if there are too many; called by a driver whose machine has failed.
    pub(super) fn expire_surplus_failed(&self) {
        let Some(requests) = self.repository.surplus_failed().and_then(|id| self.requests(id)) else { return };
        let (waiter, _) = oneshot::channel();
        // A driver with a full queue is looked at again when the next machine fails, or when its idle time has passed.
        let _ = requests.try_send(Request::Destroy(DestroyReason::Failed, waiter));
    }
}

impl Environments {
    /// No environments yet, and room for `environments_max` of them, which may reach what `policy` allows.
    #[must_use]
    pub fn new(machines: Arc<dyn Machines>, size: MachineSize, policy: Policy, environments_max: usize) -> Self {
        let registry = Registry {
            repository: Repository::new(environments_max),
            reach: Mutex::default(),
            failed_starts: Mutex::default(),
        };
        let (drivers, calls) = (TaskTracker::new(), TaskTracker::new());
        Self { registry: Arc::new(registry), machines, size, policy, drivers, calls }
    }

    /// Makes an environment and waits until it takes calls; gives it, and where its agent came from. `stages` hears how
    /// far it is.
    ///
    /// Dropping the future undoes everything.
    ///
    /// # Errors
    /// [`CallerFault::Capacity`] if there is no room, [`ServerFault::Start`] if its machine does not start.
    pub async fn create(
        &self,
        new: NewEnvironment,
        stages: Box<dyn Fn(Stage) + Send + Sync>,
    ) -> Result<(Environment, AgentOrigin), Fault> {
        let _counted = self.calls.token();
        let slot = self.registry.repository.reserve().map_err(CallerFault::from)?;
        let id = EnvironmentId::random();
        let refusals = Arc::new(Refusals::new(id));
        let journal = Arc::new(Journal::default());
        let spec = self.spec(id, &new, Arc::clone(&refusals));
        let owner = new.owner.clone();
        let environment = Environment::create(id, new, SystemTime::now(), Instant::now().into_std());
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        let (ready, outcome) = oneshot::channel();
        let abandoned = CancellationToken::new();
        let undo = abandoned.clone().drop_guard();
        {
            let mut reach = self.registry.reach();
            if reach.closing {
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
                abandoned,
                reason: DestroyReason::NeverReady,
                waiters: Vec::new(),
            };
            let span = tracing::info_span!("environment", %id);
            let run = driver.run(Arc::clone(&self.machines), stages, ready).instrument(span);
            let task = self.drivers.spawn(run).abort_handle();
            reach.drivers.insert(id, Handle { requests, task, refusals, journal });
        }
        match outcome.await {
            Ok(Ok(running)) => {
                undo.disarm();
                Ok(running)
            }
            Ok(Err(source)) => Err(ServerFault::Start { id, source }.into()),
            Err(_) => Err(match self.registry.repository.find(&owner, id) {
                Found::Destroyed(DestroyReason::NeverReady) => ServerFault::Unowned { id }.into(),
                Found::Destroyed(reason) => CallerFault::DestroyedEnvironment { id, reason }.into(),
                Found::Known(_) | Found::Unknown => ServerFault::Unowned { id }.into(),
            }),
        }
    }

    fn spec(&self, id: EnvironmentId, new: &NewEnvironment, refusals: Arc<Refusals>) -> MachineSpec {
        let egress = Egress::new(self.policy.clone(), new.network.clone());
        let network = (!egress.is_none())
            .then(|| Network { egress, on_refusal: Arc::new(move |refused| refusals.hear(refused)) });
        MachineSpec {
            id,
            image: new.image.clone(),
            cpus: self.size.cpus,
            memory_mib: self.size.memory_mib,
            disk_mib: self.size.disk_mib,
            boot_timeout: self.size.boot_timeout,
            network,
        }
    }

    /// How often an environment was refused what it wanted to reach, and what the latest was.
    #[must_use]
    pub fn egress_refused(&self, id: EnvironmentId) -> (u64, Option<Refused>) {
        let refusals = self.registry.reach().drivers.get(&id).map(|handle| Arc::clone(&handle.refusals));
        refusals.map_or((0, None), |refusals| (refusals.count(), refusals.last()))
    }

    /// What happened to an environment, whatever state it is in, or why it did not start. It does not count as a call.
    ///
    /// # Errors
    /// [`CallerFault::UnknownEnvironment`] or [`CallerFault::DestroyedEnvironment`] if there is none.
    pub fn log(&self, owner: &Principal, id: EnvironmentId) -> Result<EnvironmentLog, CallerFault> {
        let environment = match self.registry.repository.find(owner, id) {
            Found::Known(environment) => *environment,
            Found::Destroyed(reason) => {
                let failed = self.registry.failed_start(owner, id);
                return failed.ok_or(CallerFault::DestroyedEnvironment { id, reason });
            }
            Found::Unknown => return Err(CallerFault::UnknownEnvironment { id }),
        };
        let journal = self.registry.reach().drivers.get(&id).map(|handle| Arc::clone(&handle.journal));
        // It went just now, if there is none.
        let journal = journal.unwrap_or_default();
        let (refused, refused_last) = self.egress_refused(id);
        Ok(EnvironmentLog { environment, events: journal.events(), console: journal.console(), refused, refused_last })
    }

    /// Destroys an environment in whatever state it is and waits until nothing of it is left. Doing it twice is right.
    ///
    /// # Errors
    /// [`CallerFault::UnknownEnvironment`] if there is none and was none lately.
    pub async fn destroy(&self, owner: &Principal, id: EnvironmentId) -> Result<(), Fault> {
        match self.registry.repository.find(owner, id) {
            Found::Known(_) => {
                self.destroy_for(id, DestroyReason::Requested).await;
                Ok(())
            }
            Found::Destroyed(_) => Ok(()),
            Found::Unknown => Err(CallerFault::UnknownEnvironment { id }.into()),
        }
    }

    async fn destroy_for(&self, id: EnvironmentId, reason: DestroyReason) {
        let Some(requests) = self.registry.requests(id) else { return };
        let (waiter, done) = oneshot::channel();
        if requests.send(Request::Destroy(reason, waiter)).await.is_ok() {
            // A driver that ends without an answer has ended all the same.
            let _ = done.await;
        }
    }

    /// An owner's environments, oldest first.
    #[must_use]
    pub fn list(&self, owner: &Principal) -> Vec<Environment> {
        self.registry.repository.list(owner)
    }

    /// Begins a call in an environment, which does not idle until the call is dropped.
    #[tracing::instrument(target = STAGES, level = "debug", skip_all)]
    pub(super) async fn begin(&self, owner: &Principal, id: EnvironmentId) -> Result<Call, Fault> {
        let counted = self.calls.token();
        if self.registry.reach().closing {
            return Err(CallerFault::ShuttingDown.into());
        }
        match self.registry.repository.find(owner, id) {
            Found::Known(_) => {}
            Found::Destroyed(reason) => return Err(CallerFault::DestroyedEnvironment { id, reason }.into()),
            Found::Unknown => return Err(CallerFault::UnknownEnvironment { id }.into()),
        }
        let (reply, answer) = oneshot::channel();
        if let Some(requests) = self.registry.requests(id) {
            // If the driver is gone, so is the reply, and the answer below says so.
            let _ = requests.send(Request::Begin(counted, reply)).await;
        } else {
            drop(reply);
        }
        match answer.await {
            Ok(Ok(call)) => Ok(call),
            Ok(Err(CallRefusal::Busy)) => Err(CallerFault::Busy { id }.into()),
            Ok(Err(CallRefusal::NotRunning { state })) => Err(CallerFault::NotRunning { id, state }.into()),
            Err(_) => Err(self.why_gone(owner, id)),
        }
    }

    pub(super) fn is_running(&self, owner: &Principal, id: EnvironmentId) -> bool {
        matches!(self.registry.repository.find(owner, id), Found::Known(known) if known.state() == State::Running)
    }

    /// Why a call's machine went away under it.
    pub(super) fn why_gone_under_call(&self, owner: &Principal, id: EnvironmentId) -> Fault {
        match self.registry.repository.find(owner, id) {
            Found::Known(known) if matches!(known.state(), State::Destroying | State::Destroyed) => {
                CallerFault::DestroyedUnderCall { id }.into()
            }
            Found::Destroyed(_) => CallerFault::DestroyedUnderCall { id }.into(),
            Found::Known(_) | Found::Unknown => self.why_gone(owner, id),
        }
    }

    /// Why an environment takes no calls.
    fn why_gone(&self, owner: &Principal, id: EnvironmentId) -> Fault {
        match self.registry.repository.find(owner, id) {
            Found::Known(known) if known.state() != State::Running => {
                CallerFault::NotRunning { id, state: known.state() }.into()
            }
            // Its driver has not noticed yet.
            Found::Known(_) => CallerFault::NotRunning { id, state: State::Error }.into(),
            Found::Destroyed(reason) => CallerFault::DestroyedEnvironment { id, reason }.into(),
            Found::Unknown => CallerFault::UnknownEnvironment { id }.into(),
        }
    }

    /// Has every environment that may have been idle for its time look whether it has.
    pub fn expire_idle(&self) {
        let reachable: Vec<_> = self.registry.reach().drivers.values().map(|handle| handle.requests.clone()).collect();
        for requests in reachable {
            // One with a full queue is not idle.
            let _ = requests.try_send(Request::Expire);
        }
    }

    /// Takes no new calls, lets running ones end for `drain`, then destroys every environment within `release`.
    pub async fn shut_down(&self, drain: Duration, release: Duration) {
        self.registry.reach().closing = true;
        self.calls.close();
        if timeout(drain, self.calls.wait()).await.is_err() {
            tracing::warn!(calls = self.calls.len(), "calls are cut off by the shutdown");
        }
        let handles: Vec<_> = self.registry.reach().drivers.values().cloned().collect();
        self.drivers.close();
        let everything = async {
            for handle in &handles {
                // Nobody waits for the one answer: the tracker waits for all drivers.
                let (waiter, _) = oneshot::channel();
                let _ = handle.requests.send(Request::Destroy(DestroyReason::Shutdown, waiter)).await;
            }
            self.drivers.wait().await;
        };
        if timeout(release, everything).await.is_err() {
            tracing::error!(drivers = self.drivers.len(), "environments are aborted by the shutdown");
            handles.iter().for_each(|handle| handle.task.abort());
            self.drivers.wait().await;
        }
    }
}
