// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Settings of the kernel for the whole machine. Limits that protect a shared system from its users are raised: the
//! memory limit of the sandbox includes what the kernel allocates for user processes.

use std::{fs, io};

/// Maximum number of descriptors that one user may watch with epoll, and of files that the machine may have open. The
/// value is practically unlimited: memory is the real limit. The agent's network process has no capability that would
/// exempt it from the second limit.
const UNLIMITED: &str = "100000000";

/// Maximum number of files and folders that one user may watch with inotify: enough for the watchers of a large
/// project.
const WATCHES_MAX: u64 = 524_288;

/// Memory of an inotify watch in bytes, with the file's own data that the watch keeps in memory.
const WATCH_BYTES: u64 = 1024;

/// Maximum number of inotify descriptors of one user. Each program that watches files has at least one.
const WATCHERS_MAX: u64 = 1024;

/// Applies the settings; `memory_bytes` is the machine's memory.
pub(super) fn apply(memory_bytes: u64) -> io::Result<()> {
    // All processes of root share one epoll limit. A call as root must not use up the watches that the agent needs.
    fs::write("/proc/sys/fs/epoll/max_user_watches", UNLIMITED)?;
    fs::write("/proc/sys/fs/file-max", UNLIMITED)?;
    fs::write("/proc/sys/fs/inotify/max_user_watches", watches_max(memory_bytes).to_string())?;
    fs::write("/proc/sys/fs/inotify/max_user_instances", WATCHERS_MAX.to_string())?;
    // The machine has no ports that would need protection from its users, and servers expect to get port 80.
    fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")?;
    // The kernel starts no program for a core file; the file is written by the process itself, to the user's disk.
    fs::write("/proc/sys/kernel/core_pattern", "core")
}

fn watches_max(memory_bytes: u64) -> u64 {
    WATCHES_MAX.min(memory_bytes / WATCH_BYTES)
}

#[cfg(test)]
mod tests {
    use super::watches_max;

    #[test]
    fn watches_are_limited_by_memory() {
        assert_eq!(watches_max(256 << 20), 262_144);
        assert_eq!(watches_max(512 << 20), 524_288);
        assert_eq!(watches_max(64 << 30), 524_288);
    }
}
