// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Starts machines with libkrun, its fork msb_krun, or QEMU. Implements the domain's [`Machines`] port.
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
mod image_pool;
mod initramfs;
mod kernel;
mod kernel_arguments;
mod krun;
mod launch;
mod launch_plan;
mod line_socket;
mod link_source;
mod live_log;
mod machine;
mod machine_image;
mod made_file;
mod memory_file;
mod origin;
mod owner;
mod plan;
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
mod snapshot_files;
mod snapshotting;
mod start_reason;
mod survey;
mod sys;
mod templates;
mod tree_removal;
mod tsc;
mod warm_up;

use std::{
    error::Error,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::task::{JoinError, spawn_blocking};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use waggle_images::cache::ImageStore;

pub(crate) use self::krun::FIRMWARE_ABI;
use self::{
    backend::Chosen,
    confine::Namespaces,
    disks::Disks,
    initramfs::SharedRoot,
    kernel::Kernel,
    krun::Firmware,
    origin::Origin,
    run_dirs::RunDirs,
    runner_messages::{Accelerator, Library},
    templates::Templates,
};
pub use self::{
    backend::{Backend, WantedBackend},
    confine::hide_memory,
    kernel_arguments::{InvalidKernelArguments, KernelArguments},
    programs::MissingProgram,
    runner::run_if_runner,
    settings::{TemplateSettings, VmSettings},
    survey::{CheckOutcome, Needs, Survey},
};
use crate::domain::{
    machine::{Machine, MachineSpec, Machines, PortFuture, Snapshot, SnapshotFault, StartFault},
    stage::Stage,
    start_reason::StartReason,
};

/// Maximum number of virtual CPUs of a machine: libkrunfw's kernel supports no more.
pub const CPUS_MAX: u32 = 16;
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
    origin: Arc<Origin>,
    stop: CancellationToken,
    owners: TaskTracker,
}

/// The files and programs that all machines of a back end use.
#[derive(Debug)]
enum BackendParts {
    Krun { library: Library, firmware: Firmware },
    Qemu { qemu: PathBuf, accelerator: Accelerator, kernel: Kernel, root: Arc<SharedRoot> },
}

impl BackendParts {
    async fn find(settings: &VmSettings, backend: &Backend, agent: &'static [u8]) -> Result<Self, OpenFault> {
        let accelerator = match backend.chosen() {
            Chosen::Krun(library, firmware) => return Ok(Self::Krun { library: *library, firmware: firmware.clone() }),
            Chosen::Qemu(accelerator) => accelerator.clone(),
        };
        let qemu = programs::qemu(&settings.qemu)
            .map_err(|source| OpenFault::Program { backend: backend.to_string(), source })?;
        let kernel = Kernel::find(settings).await.map_err(|fault| OpenFault::Kernel { source: fault.into() })?;
        let root = SharedRoot::new(agent).map_err(|fault| OpenFault::Initramfs { source: fault.into() })?;
        Ok(Self::Qemu { qemu, accelerator, kernel, root: Arc::new(root) })
    }

    fn origin(&self, agent: &[u8]) -> Origin {
        match self {
            // The library is a part of this program.
            Self::Krun { library, firmware } => Origin::of(Path::new(""), library.name(), &firmware.path, agent),
            Self::Qemu { qemu, accelerator, kernel, .. } => {
                let accelerator = match accelerator {
                    Accelerator::Kvm => "kvm",
                    Accelerator::Emulation { .. } => "emulation",
                };
                Origin::of(qemu, accelerator, &kernel.path, agent)
            }
        }
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
        let stop = CancellationToken::new();
        let templates = Arc::new(Templates::new(settings.templates, stop.child_token()));
        let origin = Arc::new(parts.origin(agent));
        Ok(Self {
            settings,
            backend,
            parts,
            namespaces,
            images,
            disks: Arc::new(disks),
            run_dirs: Arc::new(run_dirs),
            templates,
            origin,
            stop,
            owners: TaskTracker::new(),
        })
    }

    /// The file with the guests' kernel.
    #[must_use]
    pub fn kernel(&self) -> &Path {
        match &self.parts {
            BackendParts::Krun { firmware, .. } => &firmware.path,
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

    fn read_snapshot<'a>(&'a self, folder: &'a Path) -> PortFuture<'a, Result<Arc<dyn Snapshot>, SnapshotFault>> {
        Box::pin(async {
            let read = snapshot_files::read(folder.to_owned(), self.origin.clone()).await?;
            Ok(Arc::new(read) as Arc<dyn Snapshot>)
        })
    }
}

/// Says what a VMM without namespaces may do on this host, after a guest has taken it over.
fn missing_without_namespaces(backend: &Chosen) -> Vec<&'static str> {
    let (has_files, has_connections) = (confine::restricts_files(), confine::restricts_connections());
    let files = "machines can see the server's files, because this kernel has no Landlock";
    let sockets = "machines can connect to Unix sockets of the server's user, because this kernel's Landlock does not \
                   restrict that";
    let connects = matches!(backend, Chosen::Krun(..));
    [(!has_files).then_some(files), (connects && !has_connections).then_some(sockets)].into_iter().flatten().collect()
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
