// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Control groups (v2): one for the agent, with memory of its own, and one for the room, with a group a call below it.
//!
//! ```text
//!   /sys/fs/cgroup/agent          the agent and its workers: memory.min, most of the processor
//!   /sys/fs/cgroup/egress         the network's process: memory.max; its programs' traffic is counted to it
//!   /sys/fs/cgroup/first          the room's first process, which starts and reaps: unbounded, most of the processor
//!   /sys/fs/cgroup/room           all user work: memory.max, pids.max; the root that the room sees
//!   /sys/fs/cgroup/room/calls/7   one call: its own memory.max and pids.max; killed as a whole
//! ```
//!
//! Calls share the processor by call and not by process, so a fork bomb takes no more of it than any other call.

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

/// Where the hierarchy is mounted.
pub(crate) const MOUNT: &str = "/sys/fs/cgroup";

/// Memory that user work leaves to the agent and the kernel, in bytes.
const RESERVE_BYTES: u64 = 48 * 1024 * 1024;

/// Memory of the agent's that is not reclaimed, in bytes.
const AGENT_MIN_BYTES: u64 = 16 * 1024 * 1024;

/// The part of the machine's memory that its network may have: its process keeps under 16 MiB, and the kernel counts
/// what is in flight on connections.
const EGRESS_MEMORY_PART: u64 = 4;

/// How willing the kernel is to end the network's process for want of memory: after all user work. It is started again.
const EGRESS_OOM_SCORE: &str = "-900";

/// Processes and threads of all user work, where the kernel itself allows twice as many.
const ROOM_PIDS_MAX: u64 = 8192;

/// Weight of the agent, and of the room's first process, against all user work: the kernel's largest. Both work for
/// moments only, and everything waits for them.
const CPU_WEIGHT_MAX: u32 = 10_000;

/// The calls' place.
const CALLS: &str = "/sys/fs/cgroup/room/calls";

/// Largest `cgroup.events`, in bytes: two short lines today.
const EVENTS_BYTES_MAX: usize = 512;

/// Longest wait for killed processes to be gone. Ones that hang in the kernel, in a write to a slow disk for example,
/// take longer: they are dead, and go when it lets them.
const EMPTY_MAX: Duration = Duration::from_secs(5);

/// Makes the groups, and moves this process into the agent's. The kernel's memory is told by `memory_bytes`.
pub(crate) fn set_up(memory_bytes: u64) -> io::Result<()> {
    let at = |path: &str| Path::new(MOUNT).join(path);
    for folder in ["agent", "egress", "first", "room", "room/calls"] {
        fs::create_dir_all(at(folder))?;
    }
    fs::write(at("agent/cgroup.procs"), "0")?;
    fs::write(at("cgroup.subtree_control"), "+memory +pids")?;
    fs::write(at("agent/memory.min"), AGENT_MIN_BYTES.to_string())?;
    fs::write(at("egress/memory.max"), (memory_bytes / EGRESS_MEMORY_PART).to_string())?;
    fs::write(at("room/memory.max"), memory_bytes.saturating_sub(RESERVE_BYTES).to_string())?;
    let threads = fs::read_to_string("/proc/sys/kernel/threads-max")?;
    let threads: u64 = threads.trim().parse().map_err(io::Error::other)?;
    fs::write(at("room/pids.max"), ROOM_PIDS_MAX.min(threads / 2).to_string())?;
    if let Err(fault) = favour(&["agent", "first"]) {
        report(&format!("calls share the processor by process, as the kernel does not do it by call: {fault}"));
    }
    Ok(())
}

/// Gives groups the most of the processor. Not every kernel can.
fn favour(groups: &[&str]) -> io::Result<()> {
    fs::write(Path::new(MOUNT).join("cgroup.subtree_control"), "+cpu")?;
    for group in groups {
        fs::write(Path::new(MOUNT).join(group).join("cpu.weight"), CPU_WEIGHT_MAX.to_string())?;
    }
    Ok(())
}

/// Moves this process, the network's, into its group.
pub(crate) fn join_egress() -> io::Result<()> {
    fs::write("/proc/self/oom_score_adj", EGRESS_OOM_SCORE)?;
    fs::write(Path::new(MOUNT).join("egress/cgroup.procs"), "0")
}

/// Moves this process into the room's group, so that the namespace that it makes is rooted there.
pub(crate) fn join_room() -> io::Result<()> {
    fs::write(Path::new(MOUNT).join("room/cgroup.procs"), "0")
}

/// Moves this process, the room's first, to where nothing bounds it.
pub(crate) fn leave_room() -> io::Result<()> {
    fs::write(Path::new(MOUNT).join("first/cgroup.procs"), "0")
}

/// Makes groups of calls possible below the room's, once no process is in that one any more.
pub(crate) fn open_room() -> io::Result<()> {
    fs::write(Path::new(MOUNT).join("room/cgroup.subtree_control"), "+memory +pids")?;
    fs::write(Path::new(CALLS).join("cgroup.subtree_control"), "+memory +pids")?;
    for parent in [Path::new(MOUNT).join("room"), PathBuf::from(CALLS)] {
        // Where the kernel can't, `set_up` has said so.
        let _shared = fs::write(parent.join("cgroup.subtree_control"), "+cpu");
    }
    Ok(())
}

/// The groups of calls: makes them, and removes those that background processes of an ended call kept busy.
#[derive(Debug, Default)]
pub(crate) struct CallGroups {
    left: Arc<Mutex<Vec<PathBuf>>>,
}

impl CallGroups {
    /// Makes the group of call `number`, with limits.
    pub(crate) fn create(&self, number: u64, limits: Limits) -> io::Result<CallGroup> {
        self.sweep();
        let folder = Path::new(CALLS).join(number.to_string());
        fs::create_dir(&folder)?;
        let group = CallGroup { folder, left: Arc::clone(&self.left) };
        if let Some(bytes) = limits.memory_bytes {
            fs::write(group.file("memory.max"), bytes.to_string())?;
            // One process of a call that is out of memory is not worth keeping without the others.
            fs::write(group.file("memory.oom.group"), "1")?;
        }
        if let Some(pids) = limits.pids {
            fs::write(group.file("pids.max"), pids.to_string())?;
        }
        Ok(group)
    }

    /// Only groups of calls that are over: one of a call that is about to start is empty, too.
    fn sweep(&self) {
        let mut left = lock(&self.left);
        left.retain(|folder| fs::remove_dir(folder).is_err_and(|fault| fault.kind() != io::ErrorKind::NotFound));
    }
}

/// A call's group. Dropping it leaves the group to what still lives in it, and removes it if nothing does.
#[derive(Debug)]
pub(crate) struct CallGroup {
    folder: PathBuf,
    left: Arc<Mutex<Vec<PathBuf>>>,
}

impl CallGroup {
    /// The group itself, for a command to be made in it.
    pub(crate) fn open(&self) -> io::Result<OwnedFd> {
        Ok(File::open(&self.folder)?.into())
    }

    /// Kills everything in the group, and resolves when nothing is left of it.
    pub(crate) async fn kill(&self) -> io::Result<()> {
        fs::write(self.file("cgroup.kill"), "1")?;
        timeout(EMPTY_MAX, self.empty()).await.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Kills everything in the group; nobody waits.
    pub(crate) fn kill_and_forget(&self) {
        // The group may be gone with the machine.
        let _killed = fs::write(self.file("cgroup.kill"), "1");
    }

    /// How often the kernel killed for want of memory in this group.
    pub(crate) fn memory_kills(&self) -> u64 {
        fs::read_to_string(self.file("memory.events")).map_or(0, |text| field(&text, "oom_kill"))
    }

    async fn empty(&self) -> io::Result<()> {
        let events = sys::watch(File::open(self.file("cgroup.events"))?.into(), Interest::PRIORITY)?;
        loop {
            // Reading this very descriptor is what arms its next notification.
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
        if fs::remove_dir(&self.folder).is_err() {
            // A process in the background lives on in it.
            lock(&self.left).push(std::mem::take(&mut self.folder));
        }
    }
}

/// The number behind `name` in a file of `name number` lines; 0 if there is none.
fn field(text: &str, name: &str) -> u64 {
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
    text.lines().find_map(value).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::field;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "low 0\noom 4\noom_kill 2\n";
        assert_eq!((field(text, "oom"), field(text, "oom_kill"), field(text, "oom_group_kill")), (4, 2, 0));
    }
}
