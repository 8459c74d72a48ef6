// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Checks of the host's resources: disk space, memory, and the control group that limits machines.

use std::{fs, path::Path};

use rustix::fs::{Access, access, statvfs};
use waggle_shared::disk_reserve::DiskReserve;

use crate::{
    cli::host_memory::{AllMachines, HostMemory},
    domain::machine_size::SizeLimits,
    machines::{CheckOutcome, control_group},
};

/// Controllers that limit machines.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// Checks whether more than the reserve is free on a folder's file system.
pub(super) fn free_space(folder: &Path, reserve: DiskReserve) -> CheckOutcome {
    let found = match statvfs(folder) {
        Ok(found) => found,
        Err(fault) => return CheckOutcome::Broken(format!("{}: {fault}", folder.display())),
    };
    let free_mib = found.f_bavail.saturating_mul(found.f_frsize) / (1024 * 1024);
    let text = format!("{free_mib} MiB free in {}", folder.display());
    match reserve.check(folder, 0) {
        Ok(()) => CheckOutcome::Works(text),
        Err(low) => CheckOutcome::Broken(format!("only {text}: {low}")),
    }
}

/// Checks whether the memory suffices for one machine.
pub(super) fn memory(sizes: &SizeLimits) -> CheckOutcome {
    memory_outcome(HostMemory::read(), sizes)
}

fn memory_outcome(host: Option<HostMemory>, sizes: &SizeLimits) -> CheckOutcome {
    let (machine_mib, chosen_mib) = (sizes.default.memory_mib, sizes.max.memory_mib);
    let chosen = match chosen_mib > machine_mib {
        true => format!(", or up to {chosen_mib} if its client chooses so"),
        false => String::new(),
    };
    match host.map(|host| host.available_mib) {
        None => CheckOutcome::Broken("found no MemAvailable in /proc/meminfo".to_owned()),
        Some(mib) if mib < u64::from(machine_mib) => {
            CheckOutcome::Broken(format!("only {mib} MiB available, and each machine may use {machine_mib}{chosen}"))
        }
        Some(mib) => CheckOutcome::Works(format!("{mib} MiB available, {machine_mib} for each machine{chosen}")),
    }
}

/// Checks whether the memory suffices for all environments that the server may have.
pub(super) fn memory_of_all(machines: AllMachines) -> CheckOutcome {
    match HostMemory::read().map(|host| machines.fit(host)) {
        None => CheckOutcome::Broken("found no MemTotal in /proc/meminfo".to_owned()),
        Some((true, text)) => CheckOutcome::Works(text),
        Some((false, text)) => CheckOutcome::Missing(text),
    }
}

/// Checks whether this process's control group is delegated to its user.
pub(super) fn control_group() -> CheckOutcome {
    let Some(folder) = control_group::own() else {
        return CheckOutcome::Missing("found no control groups of version 2".to_owned());
    };
    let list = folder.join("cgroup.controllers");
    let controllers = match fs::read_to_string(&list) {
        Ok(controllers) => controllers,
        Err(error) => return CheckOutcome::Missing(format!("failed to read {}: {error}", list.display())),
    };
    let lacking: Vec<_> =
        CONTROLLERS.into_iter().filter(|name| !controllers.split_whitespace().any(|there| there == *name)).collect();
    if !lacking.is_empty() {
        return CheckOutcome::Missing(format!("{} lacks the controllers {}", folder.display(), lacking.join(", ")));
    }
    match access(folder.join("cgroup.procs"), Access::WRITE_OK) {
        Ok(()) => CheckOutcome::Works(format!("{} is delegated", folder.display())),
        Err(_) => CheckOutcome::Missing(format!("{} is not delegated to this user", folder.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::machine_size::MachineSize;

    #[test]
    fn memory_must_suffice_for_one_machine() {
        let host = HostMemory { total_mib: 8000, available_mib: 600 };
        let outcome = |host, memory_mib, max_mib| {
            let size = |memory_mib| MachineSize { cpus: 1, memory_mib, disk_mib: 64 };
            memory_outcome(host, &SizeLimits { default: size(memory_mib), max: size(max_mib) })
        };
        let works = "600 MiB available, 512 for each machine";
        assert_eq!(outcome(Some(host), 512, 512), CheckOutcome::Works(works.into()));
        let chosen = format!("{works}, or up to 4096 if its client chooses so");
        assert_eq!(outcome(Some(host), 512, 4096), CheckOutcome::Works(chosen));
        let broken = "only 600 MiB available, and each machine may use 1024";
        assert_eq!(outcome(Some(host), 1024, 1024), CheckOutcome::Broken(broken.into()));
        assert!(matches!(outcome(None, 512, 512), CheckOutcome::Broken(_)));
    }

    #[test]
    fn missing_folder_is_broken() {
        let outcome = free_space(Path::new("/nowhere/at/all"), DiskReserve::default());
        assert!(matches!(outcome, CheckOutcome::Broken(text) if text.contains("/nowhere")));
    }
}
