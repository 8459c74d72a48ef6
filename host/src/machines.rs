// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Machines as libkrun or QEMU makes them: the adapter of the port that starts machines.
//!
//! ```text
//!  Vms ─▶ owner (a task a machine) ─▶ runner (a process a machine) ─▶ itself once more, as libkrun's machine
//!                                                               or ─▶ qemu-system-x86_64, vhost-device-vsock
//! ```
//!
//! `owner` has a machine's life, `runner` its processes, `run_dirs` its files. What the guest sends beyond the agent's
//! link is its console, of which the last lines are kept and logged if the machine fails.

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
mod krun;
mod live_log;
mod machine;
mod modinfo;
mod modules;
mod owner;
mod probe;
mod probe_guest;
mod programs;
mod qemu;
mod roles;
mod run_dirs;
mod runner;
mod runner_messages;
mod runner_process;
mod settings;
mod survey;
mod sys;
mod tree_removal;
mod tsc;

use std::{
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
use waggle_protocol::boot::{self, BootConfig};

pub(crate) use self::krun::FIRMWARE_ABI;
pub use self::{
    backend::{Backend, WantedBackend},
    programs::MissingProgram,
    runner::run_if_runner,
    settings::VmSettings,
    survey::{Look, Needs, Survey},
};
use self::{
    backend::{BackendFault, Chosen},
    confine::Namespaces,
    disks::Disks,
    file_names::{BOOT, INITRAMFS, SCRATCH},
    initramfs::{InitramfsFault, SharedRoot},
    kernel::{Kernel, KernelFault},
    krun::Firmware,
    machine::Vm,
    owner::{FirstRoot, Progress, Recipe},
    programs::Programs,
    run_dirs::{RunDirFault, RunDirs},
    runner_messages::{Accelerator, KrunConfig, MachineConfig, Maker, Orders, QemuConfig},
};
use crate::{
    domain::{
        defences::Defence,
        ports::{Machine, MachineSpec, Machines, PortFuture, Stage, StartFault},
    },
    images::cache::{ImageStore, PreparedImage, Resolve},
    network::Guest,
};

/// A start's news: two stages and its outcome.
const PROGRESS_MAX: usize = 4;
/// Characters of an environment's id that make its host name; they tell machines apart in a prompt.
const HOSTNAME_ID_CHARS: usize = 8;

/// Machines cannot be made on this host.
#[derive(Debug, thiserror::Error)]
pub enum OpenFault {
    /// The binary was built without a guest agent.
    #[error("this build has no guest agent in it; `./taskw build` makes one that has")]
    NoAgent,
    /// What was asked for does not run machines here.
    #[error("failed to choose what runs machines")]
    Backend {
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A program is missing.
    #[error("failed to find what runs machines here, {backend}")]
    Program {
        /// What was chosen, and why not another.
        backend: String,
        /// Which one.
        source: MissingProgram,
    },
    /// The guests' kernel does not do.
    #[error("failed to open the guests' kernel")]
    Kernel {
        /// The file, and what is wrong.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The run folders do not do.
    #[error("failed to open the run folders")]
    RunDirs {
        /// The folder, and what is wrong.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A preparing task panicked.
    #[error("failed to prepare")]
    Task {
        /// What was caught.
        source: JoinError,
    },
}

/// Starts machines, and holds what they share.
#[derive(Debug)]
pub struct Vms {
    settings: VmSettings,
    backend: Backend,
    shared: Shared,
    namespaces: Namespaces,
    images: Arc<ImageStore>,
    disks: Arc<Disks>,
    run_dirs: RunDirs,
    stop: CancellationToken,
    owners: TaskTracker,
}

/// What all machines of a back end are made from.
#[derive(Debug)]
enum Shared {
    Krun { firmware: Firmware },
    Qemu { programs: Programs, accelerator: Accelerator, kernel: PathBuf, root: Arc<SharedRoot> },
}

impl Shared {
    async fn find(settings: &VmSettings, backend: &Backend, agent: &'static [u8]) -> Result<Self, OpenFault> {
        let accelerator = match backend.chosen() {
            Chosen::Krun(firmware) => return Ok(Self::Krun { firmware: firmware.clone() }),
            Chosen::Qemu(accelerator) => accelerator.clone(),
        };
        let programs = Programs::find(&settings.qemu, &settings.vhost_device_vsock)
            .map_err(|source| OpenFault::Program { backend: backend.to_string(), source })?;
        let kernel_dir = settings.kernel_dir.clone();
        let files = spawn_blocking(move || {
            let kernel = Kernel::open(&kernel_dir).map_err(OpenFault::kernel)?;
            let root = SharedRoot::new(agent, &kernel.modules).map_err(OpenFault::initramfs)?;
            Ok((kernel.image, Arc::new(root)))
        });
        let (kernel, root) = files.await.map_err(|source| OpenFault::Task { source })??;
        Ok(Self::Qemu { programs, accelerator, kernel, root })
    }
}

impl Vms {
    /// Finds out what runs guests here, finds its programs and kernel, and sweeps what dead servers left.
    ///
    /// # Errors
    /// [`OpenFault`] says what is missing and how to get it.
    pub async fn open(
        settings: VmSettings,
        images: impl Into<Arc<ImageStore>>,
        disks: Disks,
    ) -> Result<Self, OpenFault> {
        let images = images.into();
        let agent = agent_binary::embedded().ok_or(OpenFault::NoAgent)?;
        let (firmware, firmware_dir) = (settings.firmware.as_deref(), settings.firmware_dir());
        let backend = Backend::find(settings.backend, firmware, &firmware_dir, &settings.runner).await;
        let backend = backend.map_err(OpenFault::backend)?;
        let shared = Shared::find(&settings, &backend, agent).await?;
        let namespaces = match confine::missing(&settings.runner).await {
            Ok(None) => Namespaces::Own,
            Err(fault) => {
                tracing::warn!(
                    error = &fault as &dyn Error,
                    "failed to check whether machines can have namespaces; they will fail to start without"
                );
                Namespaces::Own
            }
            Ok(Some(reason)) => {
                tracing::warn!(
                    reason,
                    "machines share the server's namespaces and see its files; their other walls hold"
                );
                Namespaces::Shared
            }
        };
        let data_dir = settings.data_dir.clone();
        let run_dirs = spawn_blocking(move || RunDirs::open(&data_dir).map_err(OpenFault::run_dirs));
        let run_dirs = run_dirs.await.map_err(|source| OpenFault::Task { source })??;
        Ok(Self {
            settings,
            backend,
            shared,
            namespaces,
            images,
            disks: Arc::new(disks),
            run_dirs,
            stop: CancellationToken::new(),
            owners: TaskTracker::new(),
        })
    }

    /// The file with the guests' kernel.
    #[must_use]
    pub fn kernel(&self) -> &Path {
        match &self.shared {
            Shared::Krun { firmware } => &firmware.path,
            Shared::Qemu { kernel, .. } => kernel,
        }
    }

    /// What runs guests here, and why.
    #[must_use]
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Stops every machine and waits until nothing is left of any; a start after this comes to nothing.
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
        if let Shared::Krun { firmware } = &self.shared {
            if spec.cpus > krun::CPUS_MAX {
                return Err(at(Stage::Boot, TooManyCpus { asked: spec.cpus }));
            }
            firmware.ensure().await.map_err(|fault| at(Stage::Boot, fault))?;
        }
        stages(Stage::Image);
        let image = tokio::select! {
            prepared = self.images.prepare_with(&spec.image, Resolve::Once, stages) => {
                prepared.map_err(|fault| at(Stage::Image, fault))?
            }
            // Others who wait for the same image go on waiting.
            () = &mut cancelled => return Err(at(Stage::Image, GivenUp)),
        };
        let recipe = self.recipe(spec, image).map_err(|fault| at(Stage::Disks, fault))?;
        let stop = self.stop.child_token();
        let stop_on_drop = stop.clone().drop_guard();
        let (progress, mut news) = mpsc::channel(PROGRESS_MAX);
        let (ending, end) = watch::channel(None);
        self.owners.spawn(owner::own(recipe, progress, stop.clone(), ending).in_current_span());
        loop {
            tokio::select! {
                heard = news.recv() => match heard {
                    Some(Progress::Stage(stage)) => stages(stage),
                    Some(Progress::Ready(agent, console)) => {
                        return Ok(Arc::new(Vm { agent, console, end, stop, _stop_on_drop: stop_on_drop }));
                    }
                    Some(Progress::Failed(fault)) => return Err(fault),
                    None => return Err(at(Stage::Boot, io::Error::other("the task that owned the machine is lost"))),
                },
                // The owner tells when it has cleared everything away.
                () = &mut cancelled, if !stop.is_cancelled() => stop.cancel(),
            }
        }
    }

    fn recipe(&self, spec: &MachineSpec, image: PreparedImage) -> Result<Recipe, RunDirFault> {
        let id = spec.id.to_string();
        let hostname = id.chars().take(HOSTNAME_ID_CHARS).collect();
        let image_agent = image.agent.filter(|agent| agent.protocol_version == waggle_protocol::VERSION);
        let machine =
            MachineConfig { cpus: spec.cpus, memory_mib: spec.memory_mib, image: image.erofs, scratch: SCRATCH.into() };
        let (maker, first_root) = self.maker();
        Ok(Recipe {
            runner: self.settings.runner.clone(),
            orders: Orders { run_dir: self.run_dirs.make(&id)?, namespaces: self.namespaces, machine, maker },
            boot: BootConfig {
                modules: Vec::new(),
                image_agent: image_agent.map(|agent| agent.path),
                env: image.env,
                working_directory: image.working_directory,
                hostname,
                network: spec.network.is_some().then(|| boot::Network { ipv6: self.settings.gateway.ipv6() }),
                ca_bundle: self.settings.ca_bundle.clone(),
                relaxed: boot::Relaxed {
                    namespaces: self.settings.relaxed.contains(Defence::Namespaces),
                    capabilities: self.settings.relaxed.contains(Defence::Capabilities),
                    no_new_privileges: self.settings.relaxed.contains(Defence::NoNewPrivileges),
                    filter: self.settings.relaxed.contains(Defence::Filter),
                },
            },
            egress: spec.network.clone().map(|network| Guest::new(network, Arc::clone(&self.settings.gateway))),
            shows_log: self.settings.log_level > 0,
            disk_mib: spec.disk_mib,
            boot_timeout: spec.boot_timeout,
            first_root,
            disks: Arc::clone(&self.disks),
            image: image.lease,
        })
    }

    fn maker(&self) -> (Maker, FirstRoot) {
        let log_level = self.settings.log_level;
        match &self.shared {
            Shared::Krun { firmware } => {
                let config = KrunConfig { firmware: firmware.path.clone(), boot: BOOT.into(), log_level };
                (Maker::Krun(config), FirstRoot::MadeByTheRunner { boot: BOOT })
            }
            Shared::Qemu { programs, accelerator, kernel, root } => {
                let config = QemuConfig {
                    qemu: programs.qemu.clone(),
                    vhost_device_vsock: programs.vhost_device_vsock.clone(),
                    accelerator: accelerator.clone(),
                    kernel: kernel.clone(),
                    initramfs: INITRAMFS.into(),
                    log_level,
                };
                (Maker::Qemu(config), FirstRoot::Initramfs { file: INITRAMFS, shared: Arc::clone(root) })
            }
        }
    }
}

impl Machines for Vms {
    fn start<'a>(
        &'a self,
        spec: &'a MachineSpec,
        stages: &'a (dyn Fn(Stage) + Send + Sync),
        cancelled: PortFuture<'a, ()>,
    ) -> PortFuture<'a, Result<Arc<dyn Machine>, StartFault>> {
        Box::pin(self.start_machine(spec, stages, cancelled))
    }
}

/// Nobody wants the machine any more.
#[derive(Debug, thiserror::Error)]
#[error("the start was given up")]
struct GivenUp;

/// More virtual CPUs than the guests' kernel can have.
#[derive(Debug, thiserror::Error)]
#[error("libkrun's guests have {} virtual CPUs at most, and {asked} were asked for", krun::CPUS_MAX)]
struct TooManyCpus {
    asked: u32,
}

fn at(stage: Stage, source: impl Error + Send + Sync + 'static) -> StartFault {
    StartFault { stage, console: Vec::new(), source: Box::new(source) }
}

impl OpenFault {
    fn backend(fault: BackendFault) -> Self {
        Self::Backend { source: fault.into() }
    }

    fn kernel(fault: KernelFault) -> Self {
        Self::Kernel { source: fault.into() }
    }

    fn initramfs(fault: InitramfsFault) -> Self {
        Self::Kernel { source: fault.into() }
    }

    fn run_dirs(fault: RunDirFault) -> Self {
        Self::RunDirs { source: fault.into() }
    }
}
