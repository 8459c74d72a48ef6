// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Makes the plan from which the owner of a machine starts it.

use std::{io, sync::Arc, time::Duration};

use waggle_protocol::boot::{self, BootConfig};

use super::{
    BackendParts, Vms,
    file_names::{BOOT, INITRAMFS, SCRATCH},
    image_pool,
    launch_plan::{InitialRoot, LaunchPlan, Start},
    machine_image::MachineImage,
    memory_file::MemoryFile,
    run_dirs::RunDirFault,
    runner_messages::{KrunConfig, MachineConfig, Maker, Orders, QemuConfig, QemuStart},
    snapshot::{ResumedMemory, Shape, VmSnapshot},
};
use crate::{
    domain::{defences::Defence, machine::MachineSpec},
    network::Guest,
};

/// Timeout of a machine that continues with the memory of a snapshot, which takes a tenth of a second. After it, the
/// machine boots.
const RESUME_MAX: Duration = Duration::from_secs(30);
/// The beginning of the guest's host name. Programs take a name of digits for an address.
const HOSTNAME_PREFIX: &str = "env-";
/// Number of characters of the environment's id in the guest's host name. Eight distinguish machines in a shell prompt.
const HOSTNAME_ID_CHARS: usize = 8;

/// The state from which a machine starts.
pub(super) enum StartFrom {
    /// The machine boots, with an empty disk.
    Nothing,
    /// The machine boots, with the disk of a snapshot.
    Disk(Arc<VmSnapshot>),
    /// The machine continues with this memory, and with the disk of the snapshot.
    Memory(ResumedMemory, Arc<VmSnapshot>),
}

#[derive(Debug, thiserror::Error)]
pub(super) enum PlanFault {
    #[error("failed to create the machine's folder")]
    Folder { source: RunDirFault },
    #[error("failed to create the machine's memory")]
    Memory { source: io::Error },
    #[error("failed to encode the boot configuration")]
    Encode { source: postcard::Error },
}

impl Vms {
    pub(super) fn plan(
        &self,
        spec: &MachineSpec,
        name: &str,
        image: &MachineImage,
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
        let resumes = matches!(from, StartFrom::Memory(..));
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
            reserve: self.settings.reserve,
            boot_timeout: if resumes { spec.boot_timeout.min(RESUME_MAX) } else { spec.boot_timeout },
            start,
            disks: Arc::clone(&self.disks),
            shape,
            origin: Arc::clone(&self.origin),
            image_pool: self.settings.data_dir.join(image_pool::FOLDER),
            run_dirs: Arc::clone(&self.run_dirs),
            image: image.clone(),
        })
    }

    /// Returns the properties that a snapshot must have for this machine to continue with its memory.
    pub(super) fn shape(&self, spec: &MachineSpec, image: &MachineImage) -> Result<Shape, PlanFault> {
        let &MachineSpec { cpus, memory_mib, disk_mib, .. } = spec;
        let boot = self.boot_config(spec, image).encode().map_err(|source| PlanFault::Encode { source })?;
        let image = image.cached.clone();
        Ok(Shape { image, cpus, memory_mib, disk_mib, boot })
    }

    fn boot_config(&self, spec: &MachineSpec, image: &MachineImage) -> BootConfig {
        let image_agent = image.agent.as_ref().filter(|(found, _)| {
            let (found, needed) = (*found, waggle_protocol::VERSION);
            if found != needed {
                tracing::info!(found, needed, "the image's agent has another version; the host's own agent is used");
            }
            found == needed
        });
        BootConfig {
            image_agent: image_agent.map(|(_, path)| path.clone()),
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
            BackendParts::Krun { library, firmware } => {
                let (library, firmware) = (*library, firmware.path.clone());
                let config = KrunConfig { library, firmware, boot: BOOT.into(), log_level };
                let root = InitialRoot::FromRunner { boot: BOOT };
                let disk = from.into_snapshot();
                return Ok((Maker::Krun(config), Start::Boot { root, disk, memory: None }));
            }
            BackendParts::Qemu { qemu, accelerator, kernel, root } => (qemu, accelerator, kernel, root),
        };
        let (qemu_start, start) = match from {
            StartFrom::Memory(memory, disk) => {
                let start = QemuStart::Snapshot { is_shared: memory.is_shared };
                (start, Start::Memory { memory, disk: Some(disk) })
            }
            from @ (StartFrom::Nothing | StartFrom::Disk(_)) => {
                let memory = MemoryFile::of_guest(spec.memory_mib).map_err(|source| PlanFault::Memory { source })?;
                let root = InitialRoot::Initramfs { file: INITRAMFS, shared: Arc::clone(root) };
                let boot = QemuStart::Boot {
                    kernel: kernel.path.clone(),
                    kernel_arguments: self.settings.kernel_arguments.as_ref().map(ToString::to_string),
                    initramfs: INITRAMFS.into(),
                };
                (boot, Start::Boot { root, disk: from.into_snapshot(), memory: Some(memory) })
            }
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

impl StartFrom {
    fn into_snapshot(self) -> Option<Arc<VmSnapshot>> {
        match self {
            Self::Nothing => None,
            Self::Disk(snapshot) | Self::Memory(_, snapshot) => Some(snapshot),
        }
    }
}
