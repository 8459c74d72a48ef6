// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Checks of the host's resources: disk space, memory, and the control group that limits machines.

use std::{fs, path::Path};

use rustix::fs::{Access, access, statvfs};
use waggle_shared::disk_reserve::DiskReserve;

use crate::machines::{CheckOutcome, control_group};

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

/// Checks whether the memory suffices for a machine of `machine_mib`.
pub(super) fn memory(machine_mib: u32) -> CheckOutcome {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    memory_outcome(&meminfo, machine_mib)
}

fn memory_outcome(meminfo: &str, machine_mib: u32) -> CheckOutcome {
    let available = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let available_kib = available.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    match available_kib.map(|kib| kib / 1024) {
        None => CheckOutcome::Broken("found no MemAvailable in /proc/meminfo".to_owned()),
        Some(mib) if mib < u64::from(machine_mib) => {
            CheckOutcome::Broken(format!("only {mib} MiB available, and each machine may use {machine_mib}"))
        }
        Some(mib) => CheckOutcome::Works(format!("{mib} MiB available, {machine_mib} for each machine")),
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

    #[test]
    fn memory_must_suffice_for_one_machine() {
        let meminfo = "MemTotal:  8000000 kB\nMemAvailable:     614400 kB\n";
        assert_eq!(memory_outcome(meminfo, 512), CheckOutcome::Works("600 MiB available, 512 for each machine".into()));
        assert_eq!(
            memory_outcome(meminfo, 1024),
            CheckOutcome::Broken("only 600 MiB available, and each machine may use 1024".into())
        );
        assert!(matches!(memory_outcome("", 512), CheckOutcome::Broken(_)));
    }

    #[test]
    fn missing_folder_is_broken() {
        let outcome = free_space(Path::new("/nowhere/at/all"), DiskReserve::default());
        assert!(matches!(outcome, CheckOutcome::Broken(text) if text.contains("/nowhere")));
    }
}
