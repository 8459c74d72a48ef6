// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The memory of this host, and the memory that the machines of a server may take.

use std::fs;

use crate::config::Settings;

/// The memory of this host in MiB, as /proc/meminfo has it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct HostMemory {
    pub(super) total_mib: u64,
    pub(super) available_mib: u64,
}

impl HostMemory {
    pub(super) fn read() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/meminfo").ok()?)
    }

    pub(super) fn parse(meminfo: &str) -> Option<Self> {
        let mib = |name: &str| {
            let kib = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            Some(kib.trim().trim_end_matches(" kB").parse::<u64>().ok()? / 1024)
        };
        Some(Self { total_mib: mib("MemTotal")?, available_mib: mib("MemAvailable")? })
    }
}

/// The machines of a server that has all its environments, each of the largest size that a client can choose.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct AllMachines {
    environments: u32,
    memory_mib: u32,
    overhead_mib: u64,
    templates_mib: u64,
}

/// Memory of a machine's VMM and runner in MiB; see docs/sizing.md.
const OVERHEAD_MIB: u64 = 80;

impl AllMachines {
    pub(super) fn of(settings: &Settings) -> Self {
        let memory_mib = settings.sizes().max.memory_mib;
        let templates = &settings.templates;
        let templates_mib = if templates.count == 0 { 0 } else { templates.max_mb.into() };
        Self { environments: settings.max_environments, memory_mib, overhead_mib: OVERHEAD_MIB, templates_mib }
    }

    fn mib(self) -> u64 {
        u64::from(self.environments) * (u64::from(self.memory_mib) + self.overhead_mib) + self.templates_mib
    }

    /// Returns whether the host has the memory for them, and a text with the sum.
    pub(super) fn fit(self, host: HostMemory) -> (bool, String) {
        let Self { environments, memory_mib, overhead_mib, templates_mib } = self;
        let (sum, total) = (self.mib(), host.total_mib);
        let text = format!(
            "{environments} environments of up to {memory_mib} MiB, {overhead_mib} MiB for the VMM of each, and \
             {templates_mib} MiB of templates may take {sum} MiB of this host's {total} MiB"
        );
        (sum <= total, text)
    }

    /// Returns a warning if the host does not have the memory for them.
    pub(super) fn warning(self, host: HostMemory) -> Option<String> {
        let (do_fit, text) = self.fit(host);
        (!do_fit).then(|| {
            format!(
                "{text}; when it runs out, the kernel ends machines: lower WAGGLE_MAX_ENVIRONMENTS, or the memory that \
                 clients can choose (WAGGLE_MAX_MEMORY_MB, or WAGGLE_DEFAULT_MEMORY_MB if that is unset)"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_of_the_largest_size_that_clients_can_choose_must_fit() {
        let host = HostMemory::parse("MemTotal:  8388608 kB\nMemFree: 1 kB\nMemAvailable:     614400 kB\n").unwrap();
        assert_eq!(host, HostMemory { total_mib: 8192, available_mib: 600 });
        let machines = |memory_mib| AllMachines { environments: 10, memory_mib, overhead_mib: 80, templates_mib: 0 };
        assert_eq!(machines(700).warning(host), None);
        let text = machines(2048).warning(host).unwrap();
        assert!(
            text.starts_with("10 environments of up to 2048 MiB, 80 MiB for the VMM of each, and 0 MiB of templates"),
            "{text}"
        );
        assert!(text.contains("may take 21280 MiB of this host's 8192 MiB"), "{text}");
        assert_eq!(HostMemory::parse("MemTotal: many kB\n"), None);
    }
}
