// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Starts one machine: from a snapshot, from a template of its shape, or by a boot.

use std::{any::Any, error::Error, io, sync::Arc};

use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, watch},
    task::spawn_blocking,
};
use tracing::Instrument as _;
use waggle_images::{cache::Resolve, reference::PullRights};

use super::{
    BackendParts, CPUS_MAX, Vms, at,
    launch_plan::{LaunchPlan, Start},
    machine::Vm,
    machine_image::MachineImage,
    owner::{self, Progress},
    plan::StartFrom,
    snapshot::VmSnapshot,
    templates::{self, TEMPLATE_PREFIX},
};
use crate::domain::{
    environment_id::EnvironmentId,
    machine::{Machine, MachineSource, MachineSpec, PortFuture, StartFault},
    stage::Stage,
    start_reason::StartReason,
};

/// Capacity of the channel from an owner. During a start, the owner sends at most two stages and the outcome.
const PROGRESS_MAX: usize = 4;

type Stages<'a> = &'a (dyn Fn(Stage) + Send + Sync);

impl Vms {
    pub(super) async fn start_machine(
        &self,
        spec: &MachineSpec,
        stages: Stages<'_>,
        mut cancelled: PortFuture<'_, ()>,
    ) -> Result<Arc<dyn Machine>, StartFault> {
        if spec.cpus > CPUS_MAX {
            return Err(at(Stage::Boot, TooManyCpus { asked: spec.cpus }));
        }
        self.check_reserve().await?;
        match &self.parts {
            BackendParts::Krun { firmware, .. } => firmware.ensure().await.map_err(|fault| at(Stage::Boot, fault))?,
            BackendParts::Qemu { kernel, .. } => kernel.ensure().await.map_err(|fault| at(Stage::Boot, fault))?,
        }
        if let MachineSource::Snapshot(snapshot) = &spec.source {
            let any: Arc<dyn Any + Send + Sync> = Arc::clone(snapshot) as _;
            let snapshot = any.downcast::<VmSnapshot>().map_err(|_other| at(Stage::Disks, ForeignSnapshot))?;
            return self.start_from_snapshot(spec, snapshot, stages, &mut cancelled).await;
        }
        stages(Stage::Image);
        let on_progress = |progress| stages(Stage::from(progress));
        let image = tokio::select! {
            prepared = self.images.prepare_as(spec.pull_rights, &spec.image, Resolve::IfUnknown, &on_progress) => {
                prepared.map_err(|fault| of_rights(spec.pull_rights, at(Stage::Image, fault)))?
            }
            // Other callers may wait for the same image, so its preparation continues.
            () = &mut cancelled => return Err(at(Stage::Image, Cancelled)),
        };
        self.start_from_image(spec, &image.into(), stages, &mut cancelled).await
    }

    /// Continues with the memory of the snapshot. If the snapshot does not fit, or the VMM cannot use it, boots with
    /// its disk.
    async fn start_from_snapshot(
        &self,
        spec: &MachineSpec,
        snapshot: Arc<VmSnapshot>,
        stages: Stages<'_>,
        cancelled: &mut PortFuture<'_, ()>,
    ) -> Result<Arc<dyn Machine>, StartFault> {
        let image = snapshot.image.clone();
        let (name, plan_fault) = (spec.id.to_string(), |fault| at(Stage::Disks, fault));
        let plan = |from| self.plan(spec, &name, &image, from).map_err(plan_fault);
        let fits = self.shape(spec, &image).map_err(plan_fault)? == snapshot.shape;
        if let Some(memory) = fits.then(|| snapshot.take_memory()).flatten() {
            match self.launch(plan(StartFrom::Memory(memory, Arc::clone(&snapshot)))?, stages, cancelled).await {
                Err(fault) if fault.reason == StartReason::Ended => {
                    let error = &fault as &dyn Error;
                    tracing::warn!(error, "failed to continue with a machine's memory; it boots with its disk");
                }
                outcome => return outcome,
            }
        }
        self.launch(plan(StartFrom::Disk(snapshot))?, stages, cancelled).await
    }

    /// Starts from a template. If there is none, boots, and makes one in the background.
    async fn start_from_image(
        &self,
        spec: &MachineSpec,
        image: &MachineImage,
        stages: Stages<'_>,
        cancelled: &mut PortFuture<'_, ()>,
    ) -> Result<Arc<dyn Machine>, StartFault> {
        let (name, plan_fault) = (spec.id.to_string(), |fault| at(Stage::Disks, fault));
        let plan = |from| self.plan(spec, &name, image, from).map_err(plan_fault);
        let key = self.templates.key(self.shape(spec, image).map_err(plan_fault)?, &spec.owner);
        let template = self.templates.get(&key);
        if let Some((memory, template)) = template.and_then(|template| Some((template.take_memory()?, template))) {
            match self.launch(plan(StartFrom::Memory(memory, template))?, stages, cancelled).await {
                Err(fault) if matches!(fault.reason, StartReason::Ended | StartReason::TimedOut) => {
                    // A busy host may be the cause of a timeout.
                    if fault.reason == StartReason::Ended {
                        self.templates.disable(&key);
                    }
                    let error = &fault as &dyn Error;
                    tracing::warn!(error, "failed to start a machine from its template; it boots instead");
                }
                outcome => return outcome,
            }
        }
        let machine = self.launch(plan(StartFrom::Nothing)?, stages, cancelled).await?;
        self.make_template(spec, image, key);
        Ok(machine)
    }

    /// Makes a template for machines like this one, if there is none. Returns once its making has begun.
    ///
    /// # Errors
    /// The image cannot be prepared.
    pub async fn prepare_template(&self, spec: &MachineSpec) -> Result<(), StartFault> {
        if !self.has_memory_snapshots() || self.templates.are_off() {
            return Ok(());
        }
        let image = self.images.prepare_with(&spec.image, Resolve::IfUnknown, &|_| {}).await;
        let image = MachineImage::from(image.map_err(|fault| at(Stage::Image, fault))?);
        let key = self.templates.key(self.shape(spec, &image).map_err(|fault| at(Stage::Disks, fault))?, &spec.owner);
        // The templates of the runtimes are made one after the other.
        let permit = self.templates.wait_for_permit().await;
        self.make_template_with(permit, spec, &image, key);
        Ok(())
    }

    /// Makes a template in the background, if there is none and none is being made.
    fn make_template(&self, spec: &MachineSpec, image: &MachineImage, key: templates::Key) {
        if self.has_memory_snapshots() {
            self.make_template_with(self.templates.permit(), spec, image, key);
        }
    }

    fn make_template_with(
        &self,
        permit: Option<OwnedSemaphorePermit>,
        spec: &MachineSpec,
        image: &MachineImage,
        key: templates::Key,
    ) {
        let Some(permit) = permit else { return };
        let stop = self.templates.making_stop();
        if stop.is_cancelled() || !self.templates.reserve(&key) {
            return;
        }
        let templates = Arc::clone(&self.templates);
        let name = format!("{TEMPLATE_PREFIX}{}", EnvironmentId::random());
        let plan = match self.plan(spec, &name, image, StartFrom::Nothing) {
            Ok(plan) => plan,
            Err(fault) => {
                tracing::warn!(error = &fault as &dyn Error, "failed to prepare a template");
                return;
            }
        };
        let make = async move {
            let _permit = permit;
            match templates::make(plan, templates.settings.are_warm, &stop).await {
                Ok(template) => match templates.add(&key, template) {
                    true => tracing::info!("a template is ready"),
                    false => tracing::warn!(
                        "a template was dropped: it exceeds WAGGLE_TEMPLATES_MAX_MB, or newer ones have taken its \
                         place (WAGGLE_TEMPLATES)"
                    ),
                },
                Err(_cancelled) if stop.is_cancelled() => templates.forget(&key),
                Err(fault) => {
                    tracing::warn!(error = &*fault as &dyn Error, "failed to make a template; machines boot instead");
                }
            }
        };
        self.owners.spawn(make.in_current_span());
    }

    /// Stops making templates, so that a shutdown has the host for itself.
    pub fn stop_templates(&self) {
        self.templates.stop_making();
    }

    /// Whether the back end can save the memory of a machine.
    fn has_memory_snapshots(&self) -> bool {
        matches!(self.parts, BackendParts::Qemu { .. })
    }

    /// Runs the machine of a plan until it is ready.
    async fn launch(
        &self,
        plan: LaunchPlan,
        stages: Stages<'_>,
        cancelled: &mut PortFuture<'_, ()>,
    ) -> Result<Arc<dyn Machine>, StartFault> {
        let has_resumed = matches!(plan.start, Start::Memory { .. });
        let stop = self.stop.child_token();
        let stop_on_drop = stop.clone().drop_guard();
        let (progress, mut messages) = mpsc::channel(PROGRESS_MAX);
        let (ending, end) = watch::channel(None);
        self.owners.spawn(owner::own(plan, progress, stop.clone(), ending).in_current_span());
        loop {
            tokio::select! {
                message = messages.recv() => match message {
                    Some(Progress::Stage(stage)) => stages(stage),
                    Some(Progress::Ready(agent, console, snapshots)) => {
                        let _stop_on_drop = stop_on_drop;
                        return Ok(Arc::new(Vm { agent, console, snapshots, has_resumed, end, stop, _stop_on_drop }));
                    }
                    Some(Progress::Failed(fault)) => return Err(fault),
                    None => return Err(at(Stage::Boot, io::Error::other("the task that owns the machine panicked"))),
                },
                // The loop continues, because the owner still reports the end after it has removed the files.
                () = &mut *cancelled, if !stop.is_cancelled() => stop.cancel(),
            }
        }
    }

    /// Checks whether the data folder's disk has room for another machine.
    async fn check_reserve(&self) -> Result<(), StartFault> {
        let (reserve, folder) = (self.settings.reserve, self.settings.data_dir.clone());
        let checked = spawn_blocking(move || reserve.check(&folder, 0)).await;
        checked.map_err(|fault| at(Stage::Disks, fault))?.map_err(|low| at(Stage::Disks, low))
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the start was cancelled")]
struct Cancelled;

#[derive(Debug, thiserror::Error)]
#[error("a machine can have at most {CPUS_MAX} virtual CPUs, not {asked}")]
struct TooManyCpus {
    asked: u32,
}

#[derive(Debug, thiserror::Error)]
#[error("the snapshot was not taken by this server's machines")]
struct ForeignSnapshot;

/// Says in the reason of a fault that the image was pulled without the operator's rights, if that may be the cause.
fn of_rights(rights: PullRights, fault: StartFault) -> StartFault {
    let reason = match (rights, fault.reason) {
        (PullRights::Public, StartReason::RegistryUnreachable) => StartReason::RegistryNotPublic,
        (PullRights::Public, StartReason::RegistryDenied) => StartReason::RegistryDeniedPublic,
        (PullRights::Public | PullRights::Operator, reason) => reason,
    };
    StartFault { reason, ..fault }
}
