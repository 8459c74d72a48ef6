// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Control groups (v2) for the agent, the network process, the sandbox's init process, user processes, and each call.
//!
//! ```text
//!   /sys/fs/cgroup/agent             the agent and its workers: memory.min, the highest cpu.weight
//!   /sys/fs/cgroup/network           the network process: memory.max, which includes the data of connections
//!   /sys/fs/cgroup/init              the sandbox's init process: no limits, the highest cpu.weight
//!   /sys/fs/cgroup/sandbox           all user processes: memory.max, pids.max; root of the sandbox's cgroup namespace
//!   /sys/fs/cgroup/sandbox/calls/7   one call: optional memory.max and pids.max; all processes are killed together
//! ```
//!
//! Every call has the same share of the processor, so a fork bomb gets no more than any other call.

use std::{
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use nix::sys::uio::pread;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::{io::Interest, task::spawn_blocking, time::timeout};
use waggle_protocol::request::Limits;

use crate::{console::report, mutex::lock, sys};

/// The mount point of the hierarchy.
pub(crate) const MOUNT: &str = "/sys/fs/cgroup";

/// Memory reserved for the agent and the kernel, in bytes. User processes can't use this memory.
const RESERVE_BYTES: u64 = 48 * 1024 * 1024;

/// Memory of the agent that the kernel never reclaims, in bytes.
const AGENT_MIN_BYTES: u64 = 16 * 1024 * 1024;

/// The network group's memory limit is the machine's memory divided by this number. The network process needs less than
/// 16 MiB, and the kernel charges the data in flight on connections to the same group.
const NETWORK_MEMORY_DIVISOR: u64 = 4;

/// OOM score adjustment of the network process: the OOM killer chooses the process only after all user processes.
const NETWORK_OOM_SCORE: &str = "-900";

/// Maximum number of user processes and their threads. Half of the kernel's own limit applies if that is lower.
const SANDBOX_PIDS_MAX: u64 = 8192;

/// Processor weight of the agent and of the sandbox's init process: the kernel's maximum. Both run only briefly,
/// and all calls wait for them.
const CPU_WEIGHT_MAX: &str = "10000";

/// Processor weight of a group that gives way to calls, which have the weight 100: the kernel's minimum.
const CPU_WEIGHT_MIN: &str = "1";

/// The group of all user processes.
const SANDBOX: &str = "/sys/fs/cgroup/sandbox";

/// The parent of the calls' groups.
const CALLS: &str = "/sys/fs/cgroup/sandbox/calls";

/// Buffer size for `cgroup.events`, in bytes; today the file has two short lines.
const EVENTS_BYTES_MAX: usize = 512;

/// Timeout for killed processes to exit. Processes that hang in the kernel, for example in a disk write, need longer.
const EMPTY_MAX: Duration = Duration::from_secs(5);

/// Creates the groups, and moves this process into the agent's group. `memory_bytes` is the machine's memory.
pub(crate) fn set_up(memory_bytes: u64) -> io::Result<()> {
    for folder in ["agent", "network", "init", "sandbox", "sandbox/calls"] {
        fs::create_dir_all(Path::new(MOUNT).join(folder))?;
    }
    write("agent/cgroup.procs", "0")?;
    write("cgroup.subtree_control", "+memory +pids")?;
    write("agent/memory.min", &AGENT_MIN_BYTES.to_string())?;
    write("network/memory.max", &(memory_bytes / NETWORK_MEMORY_DIVISOR).to_string())?;
    write("sandbox/memory.max", &memory_bytes.saturating_sub(RESERVE_BYTES).to_string())?;
    let threads = fs::read_to_string("/proc/sys/kernel/threads-max")?;
    let threads: u64 = threads.trim().parse().map_err(io::Error::other)?;
    write("sandbox/pids.max", &SANDBOX_PIDS_MAX.min(threads / 2).to_string())?;
    if let Err(fault) = prioritize() {
        report(&format!("failed to set up the cpu controller: {fault}; processes, not calls, have equal shares"));
    }
    Ok(())
}

/// Writes to a file of the hierarchy.
fn write(path: &str, value: &str) -> io::Result<()> {
    fs::write(Path::new(MOUNT).join(path), value)
}

/// Gives the agent and the sandbox's init process priority for the processor. Fails without the cpu controller.
fn prioritize() -> io::Result<()> {
    write("cgroup.subtree_control", "+cpu")?;
    write("agent/cpu.weight", CPU_WEIGHT_MAX)?;
    write("init/cpu.weight", CPU_WEIGHT_MAX)
}

/// Moves the network process into the network group. The network process itself must call this.
pub(crate) fn join_network() -> io::Result<()> {
    fs::write("/proc/self/oom_score_adj", NETWORK_OOM_SCORE)?;
    write("network/cgroup.procs", "0")
}

/// Moves this process into the sandbox's group. That group becomes the root of a cgroup namespace created afterwards.
pub(crate) fn join_sandbox() -> io::Result<()> {
    // An agent that failed may have enabled controllers below. A group with such groups below it takes no process.
    for group in ["sandbox/calls", "sandbox"] {
        let file = format!("{group}/cgroup.subtree_control");
        write(&file, "-memory -pids")?;
        let _withdrawn = write(&file, "-cpu");
    }
    write("sandbox/cgroup.procs", "0")
}

/// Moves the sandbox's init process into the unlimited `init` group. The init process itself must call this.
pub(crate) fn join_init() -> io::Result<()> {
    write("init/cgroup.procs", "0")
}

/// Enables the controllers for the calls' groups. The sandbox's own group must contain no process.
pub(crate) fn delegate_to_calls() -> io::Result<()> {
    for group in ["sandbox", "sandbox/calls"] {
        let file = format!("{group}/cgroup.subtree_control");
        write(&file, "+memory +pids")?;
        // `set_up` has already reported a kernel without the cpu controller.
        let _shared = write(&file, "+cpu");
    }
    Ok(())
}

/// Creates the calls' groups. If background processes outlive their call, the call's group is removed later.
#[derive(Debug, Default)]
pub(crate) struct CallGroups {
    groups: Arc<Mutex<Groups>>,
}

#[derive(Debug, Default)]
struct Groups {
    /// The groups of running calls.
    running: Vec<PathBuf>,
    /// The groups of ended calls whose background processes still run.
    leftover: Vec<PathBuf>,
    /// The number of processes that the OOM killer killed during their call.
    kills_in_calls: u64,
    /// The highest number of background processes that were killed, as of the last count.
    background_kills: u64,
}

impl CallGroups {
    /// Creates the group of call `number`, and sets its limits.
    pub(crate) fn create(&self, number: u64, limits: Limits) -> io::Result<CallGroup> {
        self.sweep();
        let folder = Path::new(CALLS).join(number.to_string());
        fs::create_dir(&folder)?;
        lock(&self.groups).running.push(folder.clone());
        let group = CallGroup { folder, groups: Arc::clone(&self.groups), kill_on_drop: true };
        if let Some(bytes) = limits.memory_bytes {
            fs::write(group.file("memory.max"), bytes.to_string())?;
            // If the call runs out of memory, the kernel kills all its processes together.
            fs::write(group.file("memory.oom.group"), "1")?;
        }
        if let Some(pids) = limits.pids {
            fs::write(group.file("pids.max"), pids.to_string())?;
        }
        Ok(group)
    }

    /// Removes the groups of ended calls that have become empty. The groups of starting calls are also empty, but are
    /// not in the list.
    fn sweep(&self) {
        let mut groups = lock(&self.groups);
        let remains =
            |folder: &PathBuf| fs::remove_dir(folder).is_err_and(|fault| fault.kind() != io::ErrorKind::NotFound);
        groups.leftover.retain(remains);
    }

    /// Returns how many processes of ended calls the OOM killer has killed. The number never decreases.
    pub(crate) fn background_memory_kills(&self) -> u64 {
        let mut groups = lock(&self.groups);
        // The sandbox's count includes the groups below it, also those that were removed. It is read first, so that a
        // kill in a running call at this moment is not taken for one in the background.
        let all = memory_kills(Path::new(SANDBOX));
        let known = groups.kills_in_calls + groups.background_kills;
        if all > known {
            let running: u64 = groups.running.iter().map(|folder| memory_kills(folder)).sum();
            let background = all.saturating_sub(groups.kills_in_calls + running);
            groups.background_kills = groups.background_kills.max(background);
        }
        groups.background_kills
    }
}

/// A call's group. Dropping it kills all processes in the group, unless [`CallGroup::keep_on_drop`] was called. The
/// group is removed once it is empty.
#[derive(Debug)]
pub(crate) struct CallGroup {
    folder: PathBuf,
    groups: Arc<Mutex<Groups>>,
    kill_on_drop: bool,
}

impl CallGroup {
    /// Opens the group's folder, to fork a command into the group.
    pub(crate) fn open(&self) -> io::Result<OwnedFd> {
        Ok(File::open(&self.folder)?.into())
    }

    /// Sends SIGTERM to all processes in the group. A process that starts meanwhile may not receive it.
    pub(crate) async fn terminate(&self) -> io::Result<()> {
        let folder = self.folder.clone();
        // There may be thousands of processes.
        spawn_blocking(move || terminate(&folder)).await.map_err(io::Error::other)?
    }

    /// Kills all processes in the group, and resolves when they have exited.
    pub(crate) async fn kill(&self) -> io::Result<()> {
        fs::write(self.file("cgroup.kill"), "1")?;
        timeout(EMPTY_MAX, self.empty()).await.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Lets the group's processes continue to run when this value is dropped.
    pub(crate) fn keep_on_drop(&mut self) {
        self.kill_on_drop = false;
    }

    /// Gives the group the lowest weight for the processor. Fails without the cpu controller.
    pub(crate) fn give_way(&self) -> io::Result<()> {
        fs::write(self.file("cpu.weight"), CPU_WEIGHT_MIN)
    }

    /// Returns the number of processes of this group that the OOM killer killed.
    pub(crate) fn memory_kills(&self) -> u64 {
        memory_kills(&self.folder)
    }

    /// Resolves when the group has no process.
    pub(crate) async fn empty(&self) -> io::Result<()> {
        let events = sys::watch(File::open(self.file("cgroup.events"))?.into(), Interest::PRIORITY)?;
        loop {
            // Each read of the file enables the next notification.
            let mut text = [0; EVENTS_BYTES_MAX];
            let read = pread(events.get_ref(), &mut text, 0)?;
            let text = String::from_utf8_lossy(text.get(..read).unwrap_or_default());
            if field(&text, "populated") == 0 {
                return Ok(());
            }
            events.ready(Interest::PRIORITY).await?.clear_ready();
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

impl Drop for CallGroup {
    fn drop(&mut self) {
        if self.kill_on_drop {
            // The write fails if the group no longer exists.
            let _killed = fs::write(self.file("cgroup.kill"), "1");
        }
        let mut groups = lock(&self.groups);
        groups.running.retain(|folder| *folder != self.folder);
        groups.kills_in_calls += memory_kills(&self.folder);
        if fs::remove_dir(&self.folder).is_err() {
            // A background process is still in the group.
            groups.leftover.push(std::mem::take(&mut self.folder));
        }
    }
}

/// Returns the number of processes of a group, and of the groups below it, that the OOM killer killed.
fn memory_kills(folder: &Path) -> u64 {
    fs::read_to_string(folder.join("memory.events")).map_or(0, |text| field(&text, "oom_kill"))
}

/// Sends SIGTERM to the processes of a group, and SIGCONT, because a stopped process would not receive it.
fn terminate(folder: &Path) -> io::Result<()> {
    // The agent sees the hierarchy from its root.
    let own = folder.strip_prefix(MOUNT).map_err(io::Error::other)?;
    let line = format!("0::/{}", own.display());
    for pid in fs::read_to_string(folder.join("cgroup.procs"))?.lines().filter_map(parse_pid) {
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        // The number may belong to another process by now. Because the group is read after the descriptor was opened,
        // the descriptor is that of a process in the group, or of one that has ended.
        let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_nonzero())).unwrap_or_default();
        if cgroup.trim_end() == line {
            for signal in [Signal::TERM, Signal::CONT] {
                // The process may have exited.
                let _sent = pidfd_send_signal(&process, signal);
            }
        }
    }
    Ok(())
}

fn parse_pid(line: &str) -> Option<Pid> {
    Pid::from_raw(line.parse().ok()?)
}

/// Returns the number after `name` in a text with one `name number` per line; 0 if the name is missing.
fn field(text: &str, name: &str) -> u64 {
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
    text.lines().find_map(value).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::field;

    #[test]
    fn field_matches_the_whole_name() {
        let text = "low 0\noom 4\noom_kill 2\n";
        assert_eq!((field(text, "oom"), field(text, "oom_kill"), field(text, "oom_group_kill")), (4, 2, 0));
    }
}
