// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Looks at everything that can run machines here, whether this host's choice needs it or not.
//!
//! Each look is the one that [`Vms::open`](super::Vms::open) takes, so the two cannot disagree. Nothing is changed.

use std::{
    error::Error,
    fs::OpenOptions,
    io,
    path::{Path, PathBuf},
};

use tokio::task::spawn_blocking;

use super::{
    backend::{Backend, Chosen},
    confine,
    file_names::KVM,
    kernel::{Kernel, KernelFault},
    krun::{Firmware, FirmwareFault},
    probe::{self, Kvm},
    programs,
    runner_messages::Accelerator,
    settings::VmSettings,
};
use crate::{causes::chain, machines::agent_binary};

/// How one thing was found, in a sentence.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Look {
    /// It does its work.
    Works(String),
    /// It is not there.
    Missing(String),
    /// It is there and does not do.
    Broken(String),
}

/// What a host has for machines.
#[derive(Clone, Debug)]
pub struct Survey {
    /// The agent in this binary.
    pub agent: Look,
    /// The device file of KVM.
    pub kvm_device: Look,
    /// Whether a guest runs under it.
    pub kvm: Look,
    /// The kernel of libkrun's guests.
    pub firmware: Look,
    /// QEMU.
    pub qemu: Look,
    /// What gives a QEMU machine its socket.
    pub vhost_device_vsock: Look,
    /// The kernel of QEMU's guests.
    pub kernel: Look,
    /// Namespaces around the machines' processes.
    pub namespaces: Look,
    /// What would run machines here, and why; or why nothing does.
    pub backend: Result<Backend, String>,
}

/// Which of the looks count on this host.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Needs {
    /// KVM, and access to it.
    pub kvm: bool,
    /// libkrunfw.
    pub firmware: bool,
    /// QEMU, its helper, and a kernel.
    pub qemu: bool,
}

impl Survey {
    /// Looks at all of it; takes a second or two.
    pub async fn of(settings: &VmSettings) -> Self {
        let (firmware, firmware_dir) = (settings.firmware.as_deref(), settings.firmware_dir());
        let backend = Backend::find(settings.backend, firmware, &firmware_dir, &settings.runner).await;
        let kvm = match probe::probe(&settings.runner).await {
            Kvm::Usable => Look::Works("a guest runs".to_owned()),
            Kvm::Unusable(reason) => Look::Broken(reason),
        };
        let kernel_dir = settings.kernel_dir.clone();
        let kernel = spawn_blocking(move || kernel_look(&kernel_dir)).await;
        Self {
            agent: agent_look(),
            kvm_device: device_look(Path::new(KVM)),
            kvm,
            firmware: firmware_look(Firmware::find(firmware, &firmware_dir, &settings.runner).await),
            qemu: program_look(programs::qemu(&settings.qemu)),
            vhost_device_vsock: program_look(programs::vhost_device_vsock(&settings.vhost_device_vsock)),
            kernel: kernel.unwrap_or_else(|fault| Look::Broken(fault.to_string())),
            namespaces: match confine::missing(&settings.runner).await {
                Ok(None) => Look::Works("machines get namespaces of their own".to_owned()),
                Ok(Some(reason)) => Look::Missing(reason),
                Err(fault) => Look::Broken(format!("failed to try what machines get: {fault}")),
            },
            backend: backend.map_err(|fault| chain(&fault)),
        }
    }

    /// What the choice that was made here stands on; where nothing could be chosen, what was asked for does.
    #[must_use]
    pub fn needs(&self) -> Needs {
        match self.backend.as_ref().map(Backend::chosen) {
            Ok(Chosen::Krun(_)) | Err(_) => Needs { kvm: true, firmware: true, qemu: false },
            Ok(Chosen::Qemu(accelerator)) => {
                Needs { kvm: *accelerator == Accelerator::Kvm, firmware: false, qemu: true }
            }
        }
    }
}

fn agent_look() -> Look {
    match agent_binary::embedded() {
        Some(agent) => Look::Works(format!("{} KiB, in this program", agent.len() / 1024)),
        None => Look::Missing("this build has no guest agent in it".to_owned()),
    }
}

fn device_look(path: &Path) -> Look {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Look::Works(format!("{} opens", path.display())),
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => Look::Missing(format!("no {}", path.display())),
        Err(fault) => Look::Broken(format!("{}: {fault}", path.display())),
    }
}

fn firmware_look(found: Result<Firmware, FirmwareFault>) -> Look {
    match found {
        Ok(firmware) => Look::Works(firmware.path.display().to_string()),
        Err(fault @ (FirmwareFault::Missing | FirmwareFault::NotThere { .. })) => Look::Missing(fault.to_string()),
        Err(fault) => Look::Broken(chain(&fault)),
    }
}

fn program_look(found: Result<PathBuf, programs::MissingProgram>) -> Look {
    match found {
        Ok(path) => Look::Works(path.display().to_string()),
        Err(fault) => Look::Missing(fault.to_string()),
    }
}

fn kernel_look(folder: &Path) -> Look {
    match Kernel::open(folder) {
        Ok(kernel) => Look::Works(format!("{} and {} modules", kernel.image.display(), kernel.modules.len())),
        Err(fault @ KernelFault::Read { .. }) if is_not_found(&fault) => Look::Missing(fault.to_string()),
        Err(fault) => Look::Broken(chain(&fault)),
    }
}

fn is_not_found(fault: &dyn Error) -> bool {
    let source = fault.source().and_then(<dyn Error>::downcast_ref::<io::Error>);
    source.is_some_and(|source| source.kind() == io::ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_missing_and_what_does_not_do_is_broken() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(kernel_look(folder.path()), Look::Missing(_)));
        std::fs::write(folder.path().join("vmlinuz"), "nonsense").unwrap();
        assert!(matches!(kernel_look(folder.path()), Look::Broken(text) if text.contains("not a Linux kernel")));
        assert!(matches!(device_look(&folder.path().join("kvm")), Look::Missing(_)));
        assert!(matches!(device_look(folder.path()), Look::Broken(_)));
        let cut = FirmwareFault::Unusable { path: "/x".into(), reason: "cut short".into() };
        assert_eq!(firmware_look(Err(cut)), Look::Broken("failed to use /x: cut short".into()));
        assert!(matches!(firmware_look(Err(FirmwareFault::Missing)), Look::Missing(_)));
    }
}
