// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! How much room there is: disk, memory, and the control group that bounds both.

use std::{fs, path::Path};

use rustix::fs::{Access, access, statvfs};

use crate::machines::{Look, control_group};

/// Less is used up by one image, or by one machine that installs something, in MiB.
const ROOM_MIN_MIB: u64 = 512;
/// What bounds machines.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// The free space of a folder's file system.
pub(super) fn room(folder: &Path) -> Look {
    let found = match statvfs(folder) {
        Ok(found) => found,
        Err(fault) => return Look::Broken(format!("{}: {fault}", folder.display())),
    };
    let free_mib = found.f_bavail.saturating_mul(found.f_frsize) / (1024 * 1024);
    let text = format!("{free_mib} MiB free in {}", folder.display());
    if free_mib < ROOM_MIN_MIB { Look::Broken(format!("only {text}")) } else { Look::Works(text) }
}

/// The memory that is there for a machine of `machine_mib`.
pub(super) fn memory(machine_mib: u32) -> Look {
    let told = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    memory_look(&told, machine_mib)
}

fn memory_look(meminfo: &str, machine_mib: u32) -> Look {
    let available = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let available_kib = available.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    match available_kib.map(|kib| kib / 1024) {
        None => Look::Broken("/proc/meminfo does not say how much there is".to_owned()),
        Some(mib) if mib < u64::from(machine_mib) => {
            Look::Broken(format!("only {mib} MiB available, and each machine may use {machine_mib}"))
        }
        Some(mib) => Look::Works(format!("{mib} MiB available, {machine_mib} for each machine")),
    }
}

/// Whether this process's control group is its own to divide.
pub(super) fn control_group() -> Look {
    let Some(folder) = control_group::own() else {
        return Look::Missing("no control groups of version 2".to_owned());
    };
    let Ok(controllers) = fs::read_to_string(folder.join("cgroup.controllers")) else {
        return Look::Missing(format!("{} is not to be seen from here", folder.display()));
    };
    let lacking: Vec<_> =
        CONTROLLERS.into_iter().filter(|name| !controllers.split_whitespace().any(|there| there == *name)).collect();
    if !lacking.is_empty() {
        return Look::Missing(format!("{} lacks {}", folder.display(), lacking.join(", ")));
    }
    match access(folder.join("cgroup.procs"), Access::WRITE_OK) {
        Ok(()) => Look::Works(format!("{} is delegated", folder.display())),
        Err(_) => Look::Missing(format!("{} is not delegated to this user", folder.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_enough_for_one_machine_or_not() {
        let meminfo = "MemTotal:  8000000 kB\nMemAvailable:     614400 kB\n";
        assert_eq!(memory_look(meminfo, 512), Look::Works("600 MiB available, 512 for each machine".into()));
        assert_eq!(
            memory_look(meminfo, 1024),
            Look::Broken("only 600 MiB available, and each machine may use 1024".into())
        );
        assert!(matches!(memory_look("", 512), Look::Broken(_)));
    }

    #[test]
    fn a_folder_that_is_not_there_has_no_room() {
        assert!(matches!(room(Path::new("/nowhere/at/all")), Look::Broken(text) if text.contains("/nowhere")));
    }
}
