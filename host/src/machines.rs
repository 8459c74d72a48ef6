// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Starts machines with libkrun or QEMU. Implements the domain's [`Machines`] port.
//!
//! ```text
//!  Vms ─▶ owner (one task per machine) ─▶ runner (one process per machine) ─▶ its fork, which becomes a libkrun VM
//!                                                                       or ─▶ qemu-system-x86_64
//! ```
//!
//! `owner` manages a machine from start to end, `runner` its processes, and `run_dirs` its files. The guest reaches the
//! host only through the agent's link, the egress link and the console. The last lines of the console are buffered, and
//! logged if the machine fails.

pub mod agent_binary;
mod backend;
mod confine;
mod console;
pub(crate) mod control_group;
mod cpio;
pub mod disks;
mod egress_link;
mod file_names;
pub mod firmware_binary;
mod initramfs;
mod kernel;
mod kernel_arguments;
mod krun;
mod line_socket;
mod link_source;
mod live_log;
mod machine;
mod made_file;
mod memory_file;
mod owner;
mod probe;
mod probe_guest;
mod programs;
mod pvh;
mod qemu;
mod roles;
mod run_dirs;
mod runner;
mod runner_messages;
mod runner_process;
mod settings;
mod snapshot;
mod snapshotting;
mod start_reason;
mod survey;
mod sys;
mod templates;
mod tree_removal;
mod tsc;

use std::{
    any::Any,
    error::Error,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::{
    sync::{mpsc, watch},
    task::{JoinError, spawn_blocking},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;
use waggle_images::cache::{ImageStore, PreparedImage, Resolve};
use waggle_protocol::boot::{self, BootConfig};

pub(crate) use self::krun::FIRMWARE_ABI;
use self::{
    backend::Chosen,
    confine::Namespaces,
    disks::Disks,
    file_names::{BOOT, INITRAMFS, SCRATCH},
    initramfs::SharedRoot,
    kernel::Kernel,
    krun::Firmware,
    machine::Vm,
    memory_file::MemoryFile,
    owner::{InitialRoot, LaunchPlan, Progress, Start},
    run_dirs::{RunDirFault, RunDirs},
    runner_messages::{Accelerator, KrunConfig, MachineConfig, Maker, Orders, QemuConfig, QemuStart},
    snapshot::{Shape, VmSnapshot},
    templates::{TEMPLATE_PREFIX, Templates},
};
pub use self::{
    backend::{Backend, WantedBackend},
    confine::hide_memory,
    kernel_arguments::{InvalidKernelArguments, KernelArguments},
    programs::MissingProgram,
    runner::run_if_runner,
    settings::VmSettings,
    survey::{CheckOutcome, Needs, Survey},
    templates::TemplateSettings,
};
use crate::{
    domain::{
        defences::Defence,
        environment_id::EnvironmentId,
        machine::{Machine, MachineSource, MachineSpec, Machines, PortFuture, Snapshot, SnapshotFault, StartFault},
        stage::Stage,
        start_reason::StartReason,
    },
    network::Guest,
};

/// Capacity of the channel from an owner. During a start, the owner sends at most two stages and the outcome.
const PROGRESS_MAX: usize = 4;
/// Maximum number of virtual CPUs of a machine: libkrunfw's kernel supports no more.
pub const CPUS_MAX: u32 = 16;
/// The beginning of the guest's host name. Programs take a name of digits for an address.
const HOSTNAME_PREFIX: &str = "env-";
/// Number of characters of the environment's id in the guest's host name. Eight distinguish machines in a shell prompt.
const HOSTNAME_ID_CHARS: usize = 8;

/// The reason why this host cannot start machines.
#[derive(Debug, thiserror::Error)]
pub enum OpenFault {
    #[error("this build contains no guest agent; `./taskw build` builds waggle with an agent")]
    NoAgent,
    /// The configured back end cannot run machines on this host.
    #[error("failed to choose a back end for machines")]
    Backend { source: Box<dyn Error + Send + Sync> },
    #[error("failed to find the program of the back end {backend}")]
    Program {
        /// The back end and the reason for its choice.
        backend: String,
        source: MissingProgram,
    },
    /// The guests' kernel is missing or invalid.
    #[error("failed to open the guests' kernel")]
    Kernel { source: Box<dyn Error + Send + Sync> },
    #[error("failed to create the guests' initial root")]
    Initramfs { source: Box<dyn Error + Send + Sync> },
    #[error("failed to open the run folders")]
    RunDirs { source: Box<dyn Error + Send + Sync> },
    /// A task that opens files panicked.
    #[error("failed to open the files of the machines")]
    Task { source: JoinError },
}

/// Starts machines, and owns the resources that all machines share.
#[derive(Debug)]
pub struct Vms {
    settings: VmSettings,
    backend: Backend,
    parts: BackendParts,
    namespaces: Namespaces,
    images: Arc<ImageStore>,
    disks: Arc<Disks>,
    run_dirs: Arc<RunDirs>,
    templates: Arc<Templates>,
    stop: CancellationToken,
    owners: TaskTracker,
}

/// The files and programs that all machines of a back end use.
#[derive(Debug)]
enum BackendParts {
    Krun { firmware: Firmware },
    Qemu { qemu: PathBuf, accelerator: Accelerator, kernel: Kernel, root: Arc<SharedRoot> },
}

impl BackendParts {
    async fn find(settings: &VmSettings, backend: &Backend, agent: &'static [u8]) -> Result<Self, OpenFault> {
        let accelerator = match backend.chosen() {
            Chosen::Krun(firmware) => return Ok(Self::Krun { firmware: firmware.clone() }),
            Chosen::Qemu(accelerator) => accelerator.clone(),
        };
        let qemu = programs::qemu(&settings.qemu)
            .map_err(|source| OpenFault::Program { backend: backend.to_string(), source })?;
        let kernel = Kernel::find(settings).await.map_err(|fault| OpenFault::Kernel { source: fault.into() })?;
        let root = SharedRoot::new(agent).map_err(|fault| OpenFault::Initramfs { source: fault.into() })?;
        Ok(Self::Qemu { qemu, accelerator, kernel, root: Arc::new(root) })
    }
}

impl Vms {
    /// Chooses the back end, finds its programs and kernel, and removes the run folders of dead servers.
    ///
    /// # Errors
    /// [`OpenFault`]; its text says how to install a missing part.
    pub async fn open(
        settings: VmSettings,
        images: impl Into<Arc<ImageStore>>,
        disks: Disks,
    ) -> Result<Self, OpenFault> {
        let images = images.into();
        let agent = agent_binary::embedded().ok_or(OpenFault::NoAgent)?;
        let (firmware, firmware_dir) = (settings.firmware.as_deref(), settings.firmware_dir());
        let backend = Backend::find(settings.backend, firmware, &firmware_dir, &settings.runner).await;
        let backend = backend.map_err(|fault| OpenFault::Backend { source: fault.into() })?;
        let parts = BackendParts::find(&settings, &backend, agent).await?;
        let namespaces = match confine::missing(&settings.runner).await {
            Ok(None) => Namespaces::Own,
            Err(fault) => {
                tracing::warn!(
                    error = &fault as &dyn Error,
                    "failed to check whether machines can have namespaces; if they cannot, no machine starts"
                );
                Namespaces::Own
            }
            Ok(Some(reason)) => {
                tracing::warn!(
                    reason,
                    missing = missing_without_namespaces(backend.chosen()).join("; "),
                    "machines share the server's namespaces; all other restrictions apply"
                );
                Namespaces::Shared
            }
        };
        let data_dir = settings.data_dir.clone();
        let run_dirs = spawn_blocking(move || RunDirs::open(&data_dir));
        let run_dirs = run_dirs.await.map_err(|source| OpenFault::Task { source })?;
        let run_dirs = run_dirs.map_err(|fault| OpenFault::RunDirs { source: fault.into() })?;
        let templates = Arc::new(Templates::new(settings.templates));
        Ok(Self {
            settings,
            backend,
            parts,
            namespaces,
            images,
            disks: Arc::new(disks),
            run_dirs: Arc::new(run_dirs),
            templates,
            stop: CancellationToken::new(),
            owners: TaskTracker::new(),
        })
    }

    /// The file with the guests' kernel.
    #[must_use]
    pub fn kernel(&self) -> &Path {
        match &self.parts {
            BackendParts::Krun { firmware } => &firmware.path,
            BackendParts::Qemu { kernel, .. } => &kernel.path,
        }
    }

    /// The chosen back end and the reason for the choice.
    #[must_use]
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Stops all machines, and waits until their processes have ended and their files are removed. Later starts are
    /// cancelled.
    pub async fn close(&self) {
        self.stop.cancel();
        self.owners.close();
        self.owners.wait().await;
    }

    async fn start_machine(
        &self,
        spec: &MachineSpec,
        stages: &(dyn Fn(Stage) + Send + Sync),
        mut cancelled: PortFuture<'_, ()>,
    ) -> Result<Arc<dyn Machine>, StartFault> {
        if spec.cpus > CPUS_MAX {
            return Err(at(Stage::Boot, TooManyCpus { asked: spec.cpus }));
        }
        self.check_reserve().await?;
        match &self.parts {
            BackendParts::Krun { firmware } => firmware.ensure().await.map_err(|fault| at(Stage::Boot, fault))?,
            BackendParts::Qemu { kernel, .. } => kernel.ensure().await.map_err(|fault| at(Stage::Boot, fault))?,
        }
        stages(Stage::Image);
        let on_progress = |progress| stages(Stage::from(progress));
        let image = tokio::select! {
            prepared = self.images.prepare_with(&spec.image, Resolve::IfUnknown, &on_progress) => {
                prepared.map_err(|fault| at(Stage::Image, fault))?
            }
            // Other callers may wait for the same image, so its preparation continues.
            () = &mut cancelled => return Err(at(Stage::Image, Cancelled)),
        };
        let plan_fault = |fault| at(Stage::Disks, fault);
        let name = spec.id.to_string();
        let plan = |from| self.plan(spec, &name, &image, from).map_err(plan_fault);
        if let MachineSource::Snapshot(snapshot) = &spec.source {
            let any: Arc<dyn Any + Send + Sync> = Arc::clone(snapshot) as _;
            let snapshot = any.downcast::<VmSnapshot>().map_err(|_other| at(Stage::Disks, ForeignSnapshot))?;
            if self.shape(spec, &image).map_err(plan_fault)? != snapshot.shape {
                return Err(at(Stage::Disks, ForeignSnapshot));
            }
            return self.launch(plan(StartFrom::Snapshot(snapshot))?, stages, &mut cancelled).await;
        }
        let key = self.templates.key(self.shape(spec, &image).map_err(plan_fault)?, &spec.owner);
        if let Some(template) = self.templates.get(&key) {
            match self.launch(plan(StartFrom::Snapshot(template))?, stages, &mut cancelled).await {
                Err(fault) if fault.reason != StartReason::Cancelled => {
                    self.templates.disable(&key);
                    let error = &fault as &dyn Error;
                    tracing::warn!(error, "failed to start a machine from its template; it boots instead");
                }
                outcome => return outcome,
            }
        }
        let machine = self.launch(plan(StartFrom::Nothing)?, stages, &mut cancelled).await?;
        self.make_template(spec, &image, key);
        Ok(machine)
    }

    /// Makes a template in the background, if there is none.
    fn make_template(&self, spec: &MachineSpec, image: &PreparedImage, key: templates::Key) {
        if !self.has_snapshots() || !self.templates.reserve(&key) {
            return;
        }
        let (templates, stop) = (Arc::clone(&self.templates), self.stop.clone());
        let name = format!("{TEMPLATE_PREFIX}{}", EnvironmentId::random());
        let plan = match self.plan(spec, &name, image, StartFrom::Nothing) {
            Ok(plan) => plan,
            Err(fault) => {
                tracing::warn!(error = &fault as &dyn Error, "failed to prepare a template");
                return;
            }
        };
        let make = async move {
            let Ok(_permit) = templates.making.acquire().await else { return };
            match templates::make(plan, &stop).await {
                Ok(template) => templates.add(&key, template),
                Err(_cancelled) if stop.is_cancelled() => {}
                Err(fault) => {
                    tracing::warn!(error = &*fault as &dyn Error, "failed to make a template; machines boot instead");
                }
            }
        };
        self.owners.spawn(make.in_current_span());
    }

    /// Whether the back end can take snapshots of machines.
    fn has_snapshots(&self) -> bool {
        matches!(self.parts, BackendParts::Qemu { .. })
    }

    /// Runs the machine of a plan until it is ready.
    async fn launch(
        &self,
        plan: LaunchPlan,
        stages: &(dyn Fn(Stage) + Send + Sync),
        cancelled: &mut PortFuture<'_, ()>,
    ) -> Result<Arc<dyn Machine>, StartFault> {
        let has_snapshots = self.has_snapshots();
        let has_resumed = matches!(plan.start, Start::Snapshot(_));
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
                        let snapshots = has_snapshots.then_some(snapshots);
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

    fn plan(
        &self,
        spec: &MachineSpec,
        name: &str,
        image: &PreparedImage,
        from: StartFrom,
    ) -> Result<LaunchPlan, PlanFault> {
        let id = spec.id.to_string();
        let hostname = HOSTNAME_PREFIX.chars().chain(id.chars().take(HOSTNAME_ID_CHARS)).collect();
        let machine = MachineConfig {
            cpus: spec.cpus,
            memory_mib: spec.memory_mib,
            image: image.erofs.clone(),
            scratch: SCRATCH.into(),
        };
        let shape = self.shape(spec, image)?;
        let (maker, start) = self.maker(spec, from)?;
        let run_dir = self.run_dirs.make(name).map_err(|source| PlanFault::Folder { source })?;
        Ok(LaunchPlan {
            owner: spec.owner.clone(),
            runner: self.settings.runner.clone(),
            orders: Orders { run_dir, namespaces: self.namespaces, machine, maker },
            hostname,
            boot: self.boot_config(spec, image),
            egress: spec.network.clone().map(|network| Guest::new(network, Arc::clone(&self.settings.gateway))),
            shows_log: self.settings.log_level > 0,
            disk_mib: spec.disk_mib,
            boot_timeout: spec.boot_timeout,
            start,
            disks: Arc::clone(&self.disks),
            shape,
            run_dirs: Arc::clone(&self.run_dirs),
            image: Arc::clone(&image.lease),
        })
    }

    fn shape(&self, spec: &MachineSpec, image: &PreparedImage) -> Result<Shape, PlanFault> {
        let &MachineSpec { cpus, memory_mib, disk_mib, .. } = spec;
        let boot = self.boot_config(spec, image).encode().map_err(|source| PlanFault::Encode { source })?;
        Ok(Shape { image: image.erofs.clone(), cpus, memory_mib, disk_mib, boot })
    }

    fn boot_config(&self, spec: &MachineSpec, image: &PreparedImage) -> BootConfig {
        let image_agent = image.agent.as_ref().filter(|agent| {
            let (found, needed) = (agent.protocol_version, waggle_protocol::VERSION);
            if found != needed {
                tracing::info!(found, needed, "the image's agent has another version; the host's own agent is used");
            }
            found == needed
        });
        BootConfig {
            image_agent: image_agent.map(|agent| agent.path.clone()),
            env: image.env.clone(),
            working_directory: image.working_directory.clone(),
            transport: self.backend.transport(),
            network: spec.network.is_some().then(|| boot::Network { ipv6: self.settings.gateway.ipv6() }),
            ca_bundle: self.settings.ca_bundle.clone(),
            relaxed: boot::Relaxed {
                namespaces: self.settings.relaxed.contains(Defence::Namespaces),
                capabilities: self.settings.relaxed.contains(Defence::Capabilities),
                no_new_privileges: self.settings.relaxed.contains(Defence::NoNewPrivileges),
                filter: self.settings.relaxed.contains(Defence::Filter),
            },
        }
    }

    fn maker(&self, spec: &MachineSpec, from: StartFrom) -> Result<(Maker, Start), PlanFault> {
        let log_level = self.settings.log_level;
        let (qemu, accelerator, kernel, root) = match &self.parts {
            BackendParts::Krun { firmware } => {
                let config = KrunConfig { firmware: firmware.path.clone(), boot: BOOT.into(), log_level };
                let start = Start::Boot { root: InitialRoot::FromRunner { boot: BOOT }, disk: None, memory: None };
                return Ok((Maker::Krun(config), start));
            }
            BackendParts::Qemu { qemu, accelerator, kernel, root } => (qemu, accelerator, kernel, root),
        };
        let (qemu_start, start) = match from {
            StartFrom::Nothing => {
                let memory = MemoryFile::of_guest(spec.memory_mib).map_err(|source| PlanFault::Memory { source })?;
                let root = InitialRoot::Initramfs { file: INITRAMFS, shared: Arc::clone(root) };
                let boot = QemuStart::Boot {
                    kernel: kernel.path.clone(),
                    kernel_arguments: self.settings.kernel_arguments.as_ref().map(ToString::to_string),
                    initramfs: INITRAMFS.into(),
                };
                (boot, Start::Boot { root, disk: None, memory: Some(memory) })
            }
            StartFrom::Snapshot(snapshot) => (QemuStart::Snapshot { is_shared: true }, Start::Snapshot(snapshot)),
        };
        let config = QemuConfig {
            qemu: qemu.clone(),
            has_network: spec.network.is_some(),
            accelerator: accelerator.clone(),
            start: qemu_start,
            log_level,
        };
        Ok((Maker::Qemu(config), start))
    }
}

/// What a machine starts from.
enum StartFrom {
    /// The machine boots, with an empty disk.
    Nothing,
    Snapshot(Arc<VmSnapshot>),
}

#[derive(Debug, thiserror::Error)]
enum PlanFault {
    #[error("failed to create the machine's folder")]
    Folder { source: RunDirFault },
    #[error("failed to create the machine's memory")]
    Memory { source: io::Error },
    #[error("failed to encode the boot configuration")]
    Encode { source: postcard::Error },
}

#[derive(Debug, thiserror::Error)]
#[error("the snapshot is of a machine with another image, other sizes or another back end")]
struct ForeignSnapshot;

impl Machines for Vms {
    fn start<'a>(
        &'a self,
        spec: &'a MachineSpec,
        stages: &'a (dyn Fn(Stage) + Send + Sync),
        cancelled: PortFuture<'a, ()>,
    ) -> PortFuture<'a, Result<Arc<dyn Machine>, StartFault>> {
        Box::pin(self.start_machine(spec, stages, cancelled))
    }

    fn read_snapshot<'a>(&'a self, _folder: &'a Path) -> PortFuture<'a, Result<Arc<dyn Snapshot>, SnapshotFault>> {
        Box::pin(async { Err(no_snapshots()) })
    }
}

/// The error of a back end without snapshots.
fn no_snapshots() -> SnapshotFault {
    SnapshotFault::Unsupported { why: "its back end has no snapshots".to_owned() }
}

/// Says what a VMM without namespaces may do on this host, after a guest has taken it over.
fn missing_without_namespaces(backend: &Chosen) -> Vec<&'static str> {
    let (has_files, has_connections) = (confine::restricts_files(), confine::restricts_connections());
    let files = "machines can see the server's files, because this kernel has no Landlock";
    let sockets = "machines can connect to Unix sockets of the server's user, because this kernel's Landlock does not \
                   restrict that";
    let connects = matches!(backend, Chosen::Krun(_));
    [(!has_files).then_some(files), (connects && !has_connections).then_some(sockets)].into_iter().flatten().collect()
}

#[derive(Debug, thiserror::Error)]
#[error("the start was cancelled")]
struct Cancelled;

#[derive(Debug, thiserror::Error)]
#[error("a machine can have at most {CPUS_MAX} virtual CPUs, not {asked}")]
struct TooManyCpus {
    asked: u32,
}

fn at(stage: Stage, source: impl Error + Send + Sync + 'static) -> StartFault {
    start_fault(stage, Vec::new(), Box::new(source))
}

fn start_fault(stage: Stage, console: Vec<String>, source: Box<dyn Error + Send + Sync>) -> StartFault {
    let reason = start_reason::reason_of(&*source);
    let has_ended = reason == StartReason::Ended;
    let agent_message = owner::agent_message(&console).filter(|_| has_ended).map(str::to_owned);
    StartFault { stage, reason, agent_message, console, source }
}
