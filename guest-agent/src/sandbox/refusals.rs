// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Refuses the system calls that the sandbox's filter passes to the agent, and counts them for each running command.
//!
//! A program often reports a refusal as an unrelated error, so the host tells its client which calls were refused. The
//! agent only ever refuses; a process that makes such calls without end waits for each answer, and the agent answers
//! only so many in a while. If the agent stops listening, the kernel refuses the calls.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex},
    time::Duration,
};

use nix::{
    libc::c_long,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use tokio::{
    io::Interest,
    time::{Instant, sleep_until},
};
use waggle_protocol::reply::RefusedCall;

use crate::{
    confine::filter::COUNTED,
    console::report,
    mutex::lock,
    sys::{
        self,
        seccomp::{self, WaitingCall},
    },
};

/// Maximum number of answers per [`WINDOW`]. Each takes up to 0.3 ms of an emulated processor, so that a program that
/// makes such calls without end leaves most of the processor to others. No ordinary program makes hundreds of them.
const ANSWERS_MAX: u32 = 16;

/// See [`ANSWERS_MAX`].
const WINDOW: Duration = Duration::from_millis(20);

/// The group of a call's process, in the `cgroup` file of the process.
const GROUP_PREFIX: &str = "0::/sandbox/calls/";

/// The refused system calls of running commands, by the commands' numbers.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    commands: Mutex<BTreeMap<u64, Counts>>,
}

/// The number of refusals of each of the [`COUNTED`] calls.
type Counts = [u32; COUNTED.len()];

impl Refusals {
    /// Starts to count for a command.
    pub(super) fn begin(self: &Arc<Self>, command: u64) -> CommandRefusals {
        lock(&self.commands).insert(command, Counts::default());
        CommandRefusals { all: Arc::clone(self), command }
    }

    /// Counts a refusal. Ignores processes of commands that have ended.
    fn count(&self, command: u64, call: c_long) {
        let index = COUNTED.iter().position(|(counted, _)| *counted == call);
        let mut commands = lock(&self.commands);
        let counts = commands.get_mut(&command).into_iter().flatten();
        if let Some(count) = index.and_then(|index| counts.into_iter().nth(index)) {
            *count = count.saturating_add(1);
        }
    }
}

/// The refused system calls of one command. Dropping it ends the counting.
#[derive(Debug)]
pub(super) struct CommandRefusals {
    all: Arc<Refusals>,
    command: u64,
}

impl CommandRefusals {
    /// Returns the system calls that were refused so far.
    pub(super) fn calls(&self) -> Vec<RefusedCall> {
        let counts = lock(&self.all.commands).get(&self.command).copied().unwrap_or_default();
        let named = COUNTED.iter().zip(counts).filter(|(_, count)| *count > 0);
        named.map(|((_, name), count)| RefusedCall { name: (*name).to_owned(), count }).collect()
    }
}

impl Drop for CommandRefusals {
    fn drop(&mut self) {
        lock(&self.all.commands).remove(&self.command);
    }
}

/// Refuses the calls that the listener receives, until the sandbox has ended.
pub(super) async fn refuse_all(listener: OwnedFd, refusals: Arc<Refusals>) {
    if let Err(source) = refuse_calls(listener, &refusals).await {
        report(&format!("stopped counting refused system calls: {source}"));
    }
}

async fn refuse_calls(listener: OwnedFd, refusals: &Refusals) -> std::io::Result<()> {
    let listener = sys::watch(listener, Interest::READABLE)?;
    let (mut window, mut answers) = (Instant::now(), 0);
    loop {
        let mut ready = listener.readable().await?;
        let mut waits = [PollFd::new(listener.get_ref().as_fd(), PollFlags::POLLIN)];
        poll(&mut waits, PollTimeout::ZERO)?;
        let events = waits.map(|wait| wait.revents().unwrap_or(PollFlags::empty()))[0];
        if !events.contains(PollFlags::POLLIN) {
            if events.contains(PollFlags::POLLHUP) {
                return Ok(());
            }
            ready.clear_ready();
            continue;
        }
        if let Some(call) = seccomp::receive(listener.get_ref().as_fd())? {
            refuse(&listener.get_ref(), call, refusals)?;
        }
        answers += 1;
        if answers >= ANSWERS_MAX {
            sleep_until(window + WINDOW).await;
            (window, answers) = (Instant::now(), 0);
        }
    }
}

/// Counts a call and refuses it. The count comes first, because the command may end as soon as it has the answer.
fn refuse(listener: &impl AsFd, call: WaitingCall, refusals: &Refusals) -> nix::Result<()> {
    let group = fs::read_to_string(format!("/proc/{}/cgroup", call.thread)).unwrap_or_default();
    // The thread number may belong to another thread, if the call's thread has ended meanwhile.
    if let Some(command) = command_of(&group)
        && seccomp::is_waiting(listener.as_fd(), call)
    {
        refusals.count(command, call.number);
    }
    seccomp::refuse(listener.as_fd(), call)
}

/// Returns the number of the command whose group the text of a `cgroup` file names.
fn command_of(group: &str) -> Option<u64> {
    group.lines().find_map(|line| line.strip_prefix(GROUP_PREFIX))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use nix::libc::{SYS_getpid, SYS_mount, SYS_unshare};

    use super::*;

    #[test]
    fn counts_belong_to_their_command_and_end_with_it() {
        let refusals = Arc::new(Refusals::default());
        let (one, other) = (refusals.begin(1), refusals.begin(2));
        for (command, call) in [(1, SYS_mount), (1, SYS_unshare), (1, SYS_mount), (3, SYS_mount), (2, SYS_getpid)] {
            refusals.count(command, call);
        }
        let named = |calls: Vec<RefusedCall>| calls.into_iter().map(|call| (call.name, call.count)).collect::<Vec<_>>();
        assert_eq!(named(one.calls()), [("unshare".to_owned(), 1), ("mount".to_owned(), 2)]);
        assert_eq!(named(other.calls()), []);
        drop((one, other));
        assert!(lock(&refusals.commands).is_empty());
    }

    #[test]
    fn only_groups_of_commands_have_a_number() {
        let found = ["0::/sandbox/calls/17\n", "0::/init\n", "0::/sandbox/calls/x\n", ""].map(command_of);
        assert_eq!(found, [Some(17), None, None, None]);
    }
}
