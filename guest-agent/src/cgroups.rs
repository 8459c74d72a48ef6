// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Control groups (v2): one for the agent, with reserved memory, and one for the sandbox, with one group per call.
//!
//! ```text
//!   /sys/fs/cgroup/agent             the agent and its workers: memory.min, most of the processor
//!   /sys/fs/cgroup/network           the network process: memory.max, which includes the data of connections
//!   /sys/fs/cgroup/init              the sandbox's init process: unlimited, most of the processor
//!   /sys/fs/cgroup/sandbox           all user work: memory.max, pids.max; the root that the sandbox sees
//!   /sys/fs/cgroup/sandbox/calls/7   one call: its own memory.max and pids.max; killed as a whole
//! ```
//!
//! The processor is shared by call and not by process, so a fork bomb gets no more of it than any other call.

use std::{
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use nix::sys::uio::pread;
use tokio::{io::Interest, time::timeout};
use waggle_protocol::request::Limits;

use crate::{console::report, mutex::lock, sys};

/// The mount point of the hierarchy.
pub(crate) const MOUNT: &str = "/sys/fs/cgroup";

/// Memory that user work can't use, for the agent and the kernel, in bytes.
const RESERVE_BYTES: u64 = 48 * 1024 * 1024;

/// Memory of the agent that the kernel does not reclaim, in bytes.
const AGENT_MIN_BYTES: u64 = 16 * 1024 * 1024;

/// The machine's memory divided by this is the network's limit. Its process needs less than 16 MiB, and the kernel adds
/// the data in flight on connections.
const NETWORK_MEMORY_DIVISOR: u64 = 4;

/// Makes the OOM killer choose the network process only after all user work. PID 1 restarts it.
const NETWORK_OOM_SCORE: &str = "-900";

/// Most processes and threads of all user work; fewer if the kernel itself allows less than twice as many.
const SANDBOX_PIDS_MAX: u64 = 8192;

/// The weight of the agent and of the sandbox's init process against all user work: the kernel's largest. Both work
/// only for moments, and everything waits for them.
const CPU_WEIGHT_MAX: &str = "10000";

/// The group above those of the calls.
const CALLS: &str = "/sys/fs/cgroup/sandbox/calls";

/// Largest `cgroup.events`, in bytes; today it has two short lines.
const EVENTS_BYTES_MAX: usize = 512;

/// Longest wait for killed processes to be gone. Processes that hang in the kernel, for example in a write to a slow
/// disk, take longer: they are dead, and go when the kernel releases them.
const EMPTY_MAX: Duration = Duration::from_secs(5);

/// Creates the groups, and moves this process into the agent's. `memory_bytes` is the machine's memory.
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
        report(&format!("the kernel can't share the processor by call, so calls share it by process: {fault}"));
    }
    Ok(())
}

/// Writes to a file of the hierarchy.
fn write(path: &str, value: &str) -> io::Result<()> {
    fs::write(Path::new(MOUNT).join(path), value)
}

/// Gives the agent and the sandbox's init process most of the processor. It fails in kernels without the cpu
/// controller.
fn prioritize() -> io::Result<()> {
    write("cgroup.subtree_control", "+cpu")?;
    write("agent/cpu.weight", CPU_WEIGHT_MAX)?;
    write("init/cpu.weight", CPU_WEIGHT_MAX)
}

/// Moves the network process into its group. Called by that process.
pub(crate) fn join_network() -> io::Result<()> {
    fs::write("/proc/self/oom_score_adj", NETWORK_OOM_SCORE)?;
    write("network/cgroup.procs", "0")
}

/// Moves this process into the sandbox's group, so that the cgroup namespace that it creates is rooted there.
pub(crate) fn join_sandbox() -> io::Result<()> {
    write("sandbox/cgroup.procs", "0")
}

/// Moves the sandbox's init process into its unlimited group. Called by that process.
pub(crate) fn join_init() -> io::Result<()> {
    write("init/cgroup.procs", "0")
}

/// Allows groups of calls below the sandbox's. The sandbox's own group must have no process left.
pub(crate) fn delegate_to_calls() -> io::Result<()> {
    for group in ["sandbox", "sandbox/calls"] {
        let file = format!("{group}/cgroup.subtree_control");
        write(&file, "+memory +pids")?;
        // If the kernel can't, `set_up` has reported it.
        let _shared = write(&file, "+cpu");
    }
    Ok(())
}

/// Creates the groups of calls, and removes those that background processes of an ended call kept alive.
#[derive(Debug, Default)]
pub(crate) struct CallGroups {
    leftover: Arc<Mutex<Vec<PathBuf>>>,
}

impl CallGroups {
    /// Creates the group of call `number`, with limits.
    pub(crate) fn create(&self, number: u64, limits: Limits) -> io::Result<CallGroup> {
        self.sweep();
        let folder = Path::new(CALLS).join(number.to_string());
        fs::create_dir(&folder)?;
        let group = CallGroup { folder, leftover: Arc::clone(&self.leftover), kill_on_drop: true };
        if let Some(bytes) = limits.memory_bytes {
            fs::write(group.file("memory.max"), bytes.to_string())?;
            // If a call is out of memory, all its processes are killed together.
            fs::write(group.file("memory.oom.group"), "1")?;
        }
        if let Some(pids) = limits.pids {
            fs::write(group.file("pids.max"), pids.to_string())?;
        }
        Ok(group)
    }

    /// Removes leftover groups. Only those of ended calls, because the group of a call that is starting is empty, too.
    fn sweep(&self) {
        let mut leftover = lock(&self.leftover);
        leftover.retain(|folder| fs::remove_dir(folder).is_err_and(|fault| fault.kind() != io::ErrorKind::NotFound));
    }
}

/// A call's group. Dropping it kills everything in it, unless [`CallGroup::keep_on_drop`] was called, and removes the
/// group when it is empty.
#[derive(Debug)]
pub(crate) struct CallGroup {
    folder: PathBuf,
    leftover: Arc<Mutex<Vec<PathBuf>>>,
    kill_on_drop: bool,
}

impl CallGroup {
    /// Opens the group's folder, to fork a command into it.
    pub(crate) fn open(&self) -> io::Result<OwnedFd> {
        Ok(File::open(&self.folder)?.into())
    }

    /// Kills everything in the group, and resolves when all of it is gone.
    pub(crate) async fn kill(&self) -> io::Result<()> {
        fs::write(self.file("cgroup.kill"), "1")?;
        timeout(EMPTY_MAX, self.empty()).await.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Lets processes that are in the group when it is dropped live on.
    pub(crate) fn keep_on_drop(&mut self) {
        self.kill_on_drop = false;
    }

    /// The number of processes in this group that the OOM killer killed.
    pub(crate) fn memory_kills(&self) -> u64 {
        fs::read_to_string(self.file("memory.events")).map_or(0, |text| field(&text, "oom_kill"))
    }

    async fn empty(&self) -> io::Result<()> {
        let events = sys::watch(File::open(self.file("cgroup.events"))?.into(), Interest::PRIORITY)?;
        loop {
            // Reading this descriptor arms its next notification.
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
            // It fails if the group is gone with the machine.
            let _killed = fs::write(self.file("cgroup.kill"), "1");
        }
        if fs::remove_dir(&self.folder).is_err() {
            // A process in the background is still in it.
            lock(&self.leftover).push(std::mem::take(&mut self.folder));
        }
    }
}

/// Returns the number after `name` in a file of `name number` lines; 0 if the name is missing.
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
