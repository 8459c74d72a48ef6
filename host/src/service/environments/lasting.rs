// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Environments that outlive their machine: forks, saved and suspended ones.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use waggle_images::reference::ImageRef;

use super::{Created, Environments, Inherited};
use crate::{
    domain::{
        egress::Policy,
        environment::{Environment, EnvironmentName, NewEnvironment},
        environment_id::EnvironmentId,
        machine::SnapshotFault,
        machine_size::MachineSize,
        principal::Principal,
        repository::DestroyReason,
        runtime::Runtime,
        saved::{SavedKey, SavedName},
        stage::Stage,
        variables::Variables,
    },
    error_code::ErrorCode,
    saved::{SavedAbout, SavedEntry, StoreFault},
    service::{
        fault::{ArgumentFault, CallerFault, Fault, ResumeFault, ServerFault},
        request::{ForkRequest, Request},
        saving::SavedState,
    },
};

/// Number of environments that a shutdown suspends at the same time. More would compete for one disk, and fewer of the
/// small ones would be finished in time.
const SUSPENDED_AT_ONCE: usize = 2;

/// The parameters of an environment that is made from another one; `None` for the other's.
#[derive(Clone, Debug)]
pub struct Variation {
    pub owner: Principal,
    /// `None` for the default name of a fork.
    pub name: Option<EnvironmentName>,
    pub idle_timeout: Option<Duration>,
    /// Must be that of the other environment, if given.
    pub runtime: Option<Runtime>,
    /// Must be that of the other environment, if given and the other has one.
    pub network: Option<Policy>,
    /// Must be that of the other environment, if given.
    pub image: Option<ImageRef>,
    pub size: SizeChoice,
    pub variables: Option<Variables>,
}

/// The size that a caller expects; each value must be that of the other environment.
#[derive(Clone, Copy, Debug)]
pub struct SizeChoice {
    pub cpus: Option<f64>,
    pub memory_mib: Option<f64>,
    pub disk_mib: Option<f64>,
    /// The largest size that the server's operator allows, which may have changed since the environment was saved.
    pub max: MachineSize,
}

impl SizeChoice {
    fn check(&self, size: MachineSize) -> Result<(), ArgumentFault> {
        let max = self.max;
        for (name, setting, wanted, own, max) in [
            ("cpus", "WAGGLE_MAX_CPUS", self.cpus, size.cpus, max.cpus),
            ("memory_mb", "WAGGLE_MAX_MEMORY_MB", self.memory_mib, size.memory_mib, max.memory_mib),
            ("disk_mb", "WAGGLE_MAX_DISK_MB", self.disk_mib, size.disk_mib, max.disk_mib),
        ] {
            if wanted.is_some_and(|wanted| wanted != f64::from(own)) {
                return Err(ArgumentFault::Contradiction { name, own: own.to_string() });
            }
            if own > max {
                return Err(ArgumentFault::SourceSize { name, own, max, setting });
            }
        }
        Ok(())
    }
}

impl Variation {
    /// Returns the parameters of the new environment.
    fn of(self, source: NewEnvironment) -> Result<NewEnvironment, ArgumentFault> {
        let contradiction = |name, own| Err(ArgumentFault::Contradiction { name, own });
        if self.runtime.is_some_and(|runtime| runtime != source.runtime) {
            return contradiction("language", source.runtime.name().to_owned());
        }
        if let (Some(wanted), Some(own)) = (&self.network, &source.network)
            && wanted != own
        {
            return contradiction("network", own.to_string());
        }
        if self.image.as_ref().is_some_and(|image| *image != source.image) {
            return contradiction("image", source.image.to_string());
        }
        self.size.check(source.size)?;
        Ok(NewEnvironment {
            owner: self.owner,
            name: self.name.or(source.name),
            idle_timeout: self.idle_timeout.unwrap_or(source.idle_timeout),
            network: source.network.or(self.network),
            variables: self.variables.unwrap_or(source.variables),
            ..source
        })
    }
}

impl Environments {
    /// Forks an environment: the new one has its memory, programs and files, and the source goes on. If calls run in
    /// the source, waits for them within `wait`. Dropping the future undoes the fork.
    ///
    /// # Errors
    /// [`CallerFault::ForkDuringCalls`] if calls run and `wait` is `None`, [`CallerFault::ForkWaited`] if they do not
    /// end in time, and the faults of [`Environments::create`].
    pub async fn fork(
        &self,
        id: EnvironmentId,
        variation: Variation,
        wait: Option<Duration>,
        on_stage: impl Fn(Stage) + Send,
    ) -> Result<Created, Fault> {
        let _counted = self.calls.token();
        let owner = variation.owner.clone();
        let source = self.find(&owner, id)?;
        let handle = self.registry.handle(id).ok_or_else(|| self.not_callable(&owner, id))?;
        let slot = self.reserve(&owner)?;
        let (reply, answer) = oneshot::channel();
        let fork = Request::Fork(ForkRequest { waits: wait.is_some(), reply });
        let answered = async {
            // If the driver has ended, `reply` is dropped, and `answer` fails.
            let _ = handle.requests.send(fork).await;
            answer.await.unwrap_or_else(|_| Err(self.not_callable(&owner, id).into()))
        };
        let forked = match wait {
            Some(waited) => timeout(waited, answered).await.map_err(|_| CallerFault::ForkWaited { id, waited })?,
            // The machines limit the time in which the source stands still.
            None => answered.await,
        }?;
        let new = variation.of(NewEnvironment {
            owner: owner.clone(),
            name: None,
            runtime: source.runtime,
            image: source.image,
            pull_rights: source.pull_rights,
            size: source.size,
            variables: source.variables,
            idle_timeout: source.idle_timeout,
            network: forked.network,
        })?;
        let inherited = Inherited {
            state: Some(forked.state),
            killed_installations: forked.killed_installations,
            memory_kills_told: forked.memory_kills_told,
        };
        self.start(new, slot, inherited, on_stage).await
    }

    /// Creates an environment from a saved one, which stays saved. Dropping the future undoes the create.
    ///
    /// # Errors
    /// [`CallerFault::UnknownSaved`], [`ServerFault::Restore`], and the faults of [`Environments::create`].
    pub async fn create_saved(
        &self,
        name: SavedName,
        variation: Variation,
        on_stage: impl Fn(Stage) + Send,
    ) -> Result<Created, Fault> {
        let _counted = self.calls.token();
        let (owner, key) = (variation.owner.clone(), SavedKey::Name(name.clone()));
        let store = self.saving.store()?;
        store.check().map_err(CallerFault::Store)?;
        let files = store.open_saved(&owner, &key).await.map_err(CallerFault::Store)?;
        let files = files.ok_or_else(|| CallerFault::UnknownSaved { name: name.clone() })?;
        let about = files.entry().about.clone();
        let has_default_name = about.name == EnvironmentName::of(about.runtime, about.id);
        let killed_installations = about.killed_installations.clone();
        let mut source = parameters(owner.clone(), about);
        source.name = source.name.filter(|_| !has_default_name);
        let new = variation.of(source)?;
        let slot = self.reserve(&owner)?;
        let state = match SavedState::read(&*self.machines, &files).await {
            Ok(snapshot) => SavedState { snapshot, files: Some(Arc::new(files)) },
            Err(source) => {
                if matches!(source, SnapshotFault::Damaged { .. }) {
                    // The files are kept for the operator, but no list contains them. One that was saved under this
                    // name meanwhile is not affected.
                    let _ = store.set_aside(&files).await;
                }
                return Err(ServerFault::Restore { name, source: Box::new(ResumeFault::Snapshot(source)) }.into());
            }
        };
        let inherited = Inherited { state: Some(state), killed_installations, ..Inherited::default() };
        self.start(new, slot, inherited, on_stage).await
    }

    /// Saves an environment under a name, which replaces an earlier one with this name, and then destroys the
    /// environment. If the caller leaves, both still happen.
    ///
    /// # Errors
    /// Any fault, after which the environment still exists: [`CallerFault::SaveDuringCalls`], [`CallerFault::Save`].
    pub async fn save(&self, owner: &Principal, id: EnvironmentId, name: SavedName) -> Result<SavedEntry, Fault> {
        self.find(owner, id)?;
        let handle = self.registry.handle(id).ok_or_else(|| self.not_callable(owner, id))?;
        let (reply, answer) = oneshot::channel();
        let _ = handle.requests.send(Request::Save(name, reply)).await;
        let saved = answer.await.unwrap_or_else(|_| Err(self.not_callable(owner, id).into()))?;
        // Waits until everything is released.
        self.destroy(owner, id).await?;
        Ok(saved)
    }

    /// Returns an owner's saved environments, oldest first.
    #[must_use]
    pub fn saved(&self, owner: &Principal) -> Vec<SavedEntry> {
        self.saving.store.as_ref().map(|store| store.list(owner)).unwrap_or_default()
    }

    /// Returns why the saved environments are not available, if another server holds them.
    #[must_use]
    pub fn saved_fault(&self) -> Option<StoreFault> {
        self.saving.store.as_ref()?.check().err()
    }

    /// Removes a saved environment. Environments that were made from it are not affected.
    ///
    /// # Errors
    /// [`CallerFault::UnknownSaved`], [`CallerFault::Store`], [`ServerFault::Remove`].
    pub async fn remove_saved(&self, owner: &Principal, name: SavedName) -> Result<(), Fault> {
        match self.saving.store()?.remove(owner, &SavedKey::Name(name.clone())).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(CallerFault::UnknownSaved { name }.into()),
            Err(source) if source.code() == ErrorCode::Internal => {
                Err(ServerFault::Remove { name, source: Box::new(source) }.into())
            }
            Err(source) => Err(CallerFault::Store(source).into()),
        }
    }

    /// Removes the saved and suspended environments that are too old.
    pub async fn expire_saved(&self) {
        let Some(store) = &self.saving.store else { return };
        for SavedEntry { key, owner, .. } in store.expire().await {
            tracing::info!(%key, %owner, "a saved environment was removed because of its age");
        }
    }

    /// Registers the environments that an earlier server suspended, under their ids and owners. They take slots, even
    /// if there are more than the server's maximum. Those of owners that have no access to this server stay in the
    /// store: they could not be destroyed, and would keep their slots.
    pub fn restore_suspended(&self, has_access: impl Fn(&Principal) -> bool) {
        for SavedEntry { owner, about, .. } in self.suspended() {
            let (id, created_at) = (about.id, about.created_at);
            if owner == Principal::local() {
                continue;
            }
            if !has_access(&owner) {
                tracing::warn!(environment = %id, %owner, "an environment stays suspended: its owner has no access");
                continue;
            }
            let slot = self.registry.repository.occupy(&owner);
            let killed_installations = about.killed_installations.clone();
            let inherited = Inherited { killed_installations, ..Inherited::default() };
            let new = parameters(owner, about);
            let environment = Environment::suspended(id, new.clone(), created_at, Instant::now().into_std());
            let never = CancellationToken::new();
            let (driver, requests) = self.driver(environment, &new, slot, inherited, never);
            driver.journal.note("suspended by an earlier server");
            match self.spawn_driver(driver, requests, |driver, machines| driver.run_suspended(machines)) {
                Ok(()) => tracing::info!(environment = %id, owner = %new.owner, "an environment is suspended"),
                // A server that stops at once leaves it to the next one.
                Err(fault) => tracing::warn!(environment = %id, error = %fault, "an environment stays suspended"),
            }
        }
    }

    /// Removes the suspended environments of clients that started their server, which was then killed. No other client
    /// can reach them.
    pub fn remove_suspended_local(&self) {
        let Some(store) = self.saving.store.clone() else { return };
        let local: Vec<_> = self.suspended().into_iter().filter(|entry| entry.owner == Principal::local()).collect();
        self.drivers.spawn(async move {
            for SavedEntry { owner, key, .. } in local {
                if let Err(fault) = store.remove(&owner, &key).await {
                    tracing::warn!(
                        error = &fault as &dyn std::error::Error,
                        "failed to remove a suspended environment"
                    );
                }
            }
        });
    }

    /// Returns the suspended environments in the store, in the order of their creation, which is that of lists.
    fn suspended(&self) -> Vec<SavedEntry> {
        let mut suspended = self.saving.store.as_ref().map(|store| store.suspended()).unwrap_or_default();
        suspended.sort_by_key(|entry| entry.about.created_at);
        suspended
    }

    /// Refuses new calls, waits up to `drain` for running calls, then suspends all environments within `suspend`, the
    /// largest last. Those that cannot be suspended are destroyed, within `release`.
    pub async fn suspend_all(&self, drain: Duration, suspend: Duration, release: Duration) {
        self.drain(drain).await;
        let mut environments = self.registry.repository.all();
        environments.sort_by_key(|environment| environment.size.memory_mib);
        let handles: Vec<_> = environments.iter().filter_map(|one| self.registry.handle(one.id)).collect();
        let suspending = stream::iter(handles).for_each_concurrent(SUSPENDED_AT_ONCE, |handle| async move {
            let (done, suspended) = oneshot::channel();
            if handle.requests.send(Request::Suspend(done)).await.is_ok() {
                // The driver drops the sender at its end.
                let _ = suspended.await;
            }
        });
        if timeout(suspend, suspending).await.is_err() {
            tracing::error!("timed out suspending the environments");
        }
        self.destroy_all(release, DestroyReason::Unsuspended).await;
    }
}

/// Returns the parameters of a saved environment.
fn parameters(owner: Principal, about: SavedAbout) -> NewEnvironment {
    NewEnvironment {
        owner,
        name: Some(about.name),
        runtime: about.runtime,
        image: about.image,
        pull_rights: about.pull_rights,
        size: MachineSize { cpus: about.cpus, memory_mib: about.memory_mib, disk_mib: about.disk_mib },
        variables: about.variables,
        idle_timeout: about.idle_timeout,
        network: about.network,
    }
}
