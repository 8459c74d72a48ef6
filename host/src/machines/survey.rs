// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Checks every component that some back end needs to run machines on this host, even if the chosen back end does not
//! need the component.
//!
//! [`Vms::open`](super::Vms::open) runs the same checks, but only for its back end. The checks change nothing, except
//! that they unpack embedded firmware and the kernel in it, and remove old unpacked versions.

use std::{
    fs::OpenOptions,
    io,
    path::{Path, PathBuf},
};

use waggle_shared::causes::chain;

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
use crate::machines::agent_binary;

/// The outcome of one check, with an explanation.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum CheckOutcome {
    Works(String),
    Missing(String),
    /// The component cannot be used, or the check itself failed.
    Broken(String),
}

/// The outcomes of all checks.
#[derive(Clone, Debug)]
pub struct Survey {
    /// The guest agent embedded in this binary.
    pub agent: CheckOutcome,
    /// KVM's device file.
    pub kvm_device: CheckOutcome,
    /// Whether KVM runs a guest.
    pub kvm: CheckOutcome,
    /// The library that contains the guests' kernel.
    pub firmware: CheckOutcome,
    pub qemu: CheckOutcome,
    /// The kernel of QEMU's guests.
    pub kernel: CheckOutcome,
    /// Whether the operator set the kernel of QEMU's guests.
    has_own_kernel: bool,
    /// Whether the machines' processes can have their own namespaces.
    pub namespaces: CheckOutcome,
    /// The back end that a server would choose, or the reason why none can be chosen.
    pub backend: Result<Backend, String>,
}

/// The parts that this host's back end needs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Needs {
    /// KVM and access to its device.
    pub kvm: bool,
    pub firmware: bool,
    /// QEMU and a kernel.
    pub qemu: bool,
}

impl Survey {
    /// Runs all checks. Takes a second or two.
    pub async fn of(settings: &VmSettings) -> Self {
        let (firmware, firmware_dir) = (settings.firmware.as_deref(), settings.firmware_dir());
        let backend = Backend::find(settings.backend, firmware, &firmware_dir, &settings.runner).await;
        let kvm = match probe::probe(&settings.runner).await {
            Kvm::Usable => CheckOutcome::Works("a guest runs".to_owned()),
            Kvm::Unusable(reason) => CheckOutcome::Broken(reason),
        };
        Self {
            agent: check_agent(),
            kvm_device: check_device(Path::new(KVM)),
            kvm,
            firmware: check_firmware(Firmware::find(firmware, &firmware_dir, &settings.runner).await),
            qemu: check_program(programs::qemu(&settings.qemu)),
            kernel: check_kernel(Kernel::find(settings).await),
            has_own_kernel: settings.kernel.is_some(),
            namespaces: match confine::missing(&settings.runner).await {
                Ok(None) => CheckOutcome::Works("machines can have their own namespaces".to_owned()),
                Ok(Some(reason)) => CheckOutcome::Missing(reason),
                Err(fault) => CheckOutcome::Broken(format!("failed to run the check: {fault}")),
            },
            backend: backend.map_err(|fault| chain(&fault)),
        }
    }

    /// The needs of the chosen back end, or those of libkrun if none could be chosen.
    #[must_use]
    pub fn needs(&self) -> Needs {
        match self.backend.as_ref().map(Backend::chosen) {
            Ok(Chosen::Krun(..)) | Err(_) => Needs { kvm: true, firmware: true, qemu: false },
            Ok(Chosen::Qemu(accelerator)) => {
                Needs { kvm: *accelerator == Accelerator::Kvm, firmware: !self.has_own_kernel, qemu: true }
            }
        }
    }
}

fn check_agent() -> CheckOutcome {
    match agent_binary::embedded() {
        Some(agent) => CheckOutcome::Works(format!("{} KiB, embedded in this program", agent.len() / 1024)),
        None => CheckOutcome::Missing("this build contains no guest agent".to_owned()),
    }
}

fn check_device(path: &Path) -> CheckOutcome {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => CheckOutcome::Works(format!("{} can be opened", path.display())),
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => {
            CheckOutcome::Missing(format!("{} not found", path.display()))
        }
        Err(fault) => CheckOutcome::Broken(format!("{}: {fault}", path.display())),
    }
}

fn check_firmware(found: Result<Firmware, FirmwareFault>) -> CheckOutcome {
    match found {
        Ok(firmware) => CheckOutcome::Works(firmware.path.display().to_string()),
        Err(fault @ (FirmwareFault::Missing | FirmwareFault::NotThere { .. })) => {
            CheckOutcome::Missing(fault.to_string())
        }
        Err(fault) => CheckOutcome::Broken(chain(&fault)),
    }
}

fn check_program(found: Result<PathBuf, programs::MissingProgram>) -> CheckOutcome {
    match found {
        Ok(path) => CheckOutcome::Works(path.display().to_string()),
        Err(fault) => CheckOutcome::Missing(fault.to_string()),
    }
}

fn check_kernel(found: Result<Kernel, KernelFault>) -> CheckOutcome {
    match found {
        Ok(kernel) => CheckOutcome::Works(kernel.path.display().to_string()),
        Err(fault) if is_absence(&fault) => CheckOutcome::Missing(chain(&fault)),
        Err(fault) => CheckOutcome::Broken(chain(&fault)),
    }
}

fn is_absence(fault: &KernelFault) -> bool {
    match fault {
        KernelFault::Firmware { source } => matches!(source, FirmwareFault::Missing | FirmwareFault::NotThere { .. }),
        KernelFault::Open { source, .. } => source.kind() == io::ErrorKind::NotFound,
        KernelFault::Unusable { .. }
        | KernelFault::Make { .. }
        | KernelFault::Run { .. }
        | KernelFault::Folder { .. }
        | KernelFault::Invalid { .. }
        | KernelFault::Task { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_components_are_missing_and_invalid_components_are_broken() {
        let folder = tempfile::tempdir().unwrap();
        let absent = KernelFault::Firmware { source: FirmwareFault::Missing };
        assert!(matches!(check_kernel(Err(absent)), CheckOutcome::Missing(text) if text.contains("./taskw firmware")));
        let unusable = KernelFault::Unusable { firmware: "/x".into(), reason: "it has no PVH entry".into() };
        assert!(matches!(check_kernel(Err(unusable)), CheckOutcome::Broken(text) if text.contains("no PVH entry")));
        assert!(matches!(check_device(&folder.path().join("kvm")), CheckOutcome::Missing(_)));
        assert!(matches!(check_device(folder.path()), CheckOutcome::Broken(_)));
        let cut = FirmwareFault::Unusable { path: "/x".into(), reason: "cut short".into() };
        assert_eq!(check_firmware(Err(cut)), CheckOutcome::Broken("failed to use /x: cut short".into()));
        assert!(matches!(check_firmware(Err(FirmwareFault::Missing)), CheckOutcome::Missing(_)));
    }
}
