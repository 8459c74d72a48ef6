// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Settings of the kernel for the whole machine. Limits that protect a shared system from its users are raised: the
//! memory limit of the sandbox includes what the kernel allocates for user processes.

use std::{fs, io, path::Path};

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

/// Maximum number of process ids: the most that a kernel allows that was built for little memory, such as libkrunfw's.
/// That kernel's default of 4096 is less than one call may use.
const PIDS_MAX: &str = "32768";

/// Number of times that the kernel repeats a SYN. Without an answer, `connect` then fails after 31 to 35 s, depending
/// on the kernel, which is just after the host has given up.
const SYN_RETRIES: &str = "4";

/// Applies the settings; `memory_bytes` is the machine's memory.
pub(super) fn apply(memory_bytes: u64) -> io::Result<()> {
    let (watches, watchers) = (watches_max(memory_bytes).to_string(), WATCHERS_MAX.to_string());
    let settings = [
        // All processes of root share one epoll limit. A call as root must not use up the watches that the agent needs.
        ("fs/epoll/max_user_watches", UNLIMITED),
        ("fs/file-max", UNLIMITED),
        ("fs/inotify/max_user_watches", watches.as_str()),
        ("fs/inotify/max_user_instances", watchers.as_str()),
        // The machine has no ports that would need protection from its users, and servers expect to get port 80.
        ("net/ipv4/ip_unprivileged_port_start", "0"),
        ("net/ipv4/tcp_syn_retries", SYN_RETRIES),
        ("kernel/pid_max", PIDS_MAX),
        // The kernel starts no program for a core file: the crashed process writes the file, to the user's disk.
        ("kernel/core_pattern", "core"),
    ];
    for (name, value) in settings {
        match fs::write(Path::new("/proc/sys").join(name), value) {
            // The operator's kernel lacks the feature.
            Err(fault) if fault.kind() == io::ErrorKind::NotFound => {}
            written => written?,
        }
    }
    Ok(())
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
