// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Calls that outlive their requests: the extension `io.modelcontextprotocol/tasks` (SEP-2663).
//!
//! ```text
//!             hand over              the call ends            its time is over
//!  a call ──────────────▶ working ──────────────▶ an outcome ─────────────────▶ unknown
//! ```
//!
//! A call is handed over when its client can poll and has waited for a while. Where there is no room for another task
//! the call stays what it was, a request that is answered when it is over, so a task's result is never dropped before
//! its time to make room. To all but its principal a task is as unknown as one that never was.
//!
//! rmcp has a `TaskManager` too. It knows no principals, cannot let go of a result before its time is over and has no
//! limit of what it holds, so only the types are taken from it.

mod outcome;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use futures_util::future::BoxFuture;
use rmcp::{
    ErrorData,
    model::{CallToolRequestParams, DetailedTask, Task, TaskPayload, TaskStatus},
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

pub(super) use self::outcome::Outcome;
use super::{errors, progress::Progress, results};
use crate::{domain::principal::Principal, mutex::lock};

/// How long a call is waited for before it becomes a task: most are over by then, and a poll costs its client more.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// How often a client should ask, in milliseconds.
const POLL_INTERVAL_MS: u64 = 1000;

/// Beyond the longest command, how long a task may run: what is left is an image that comes over a slow line, for 2 GB
/// of which the pull itself allows as long.
const SLOW_PULL: Duration = Duration::from_secs(6 * 60 * 60);

/// How long a task is known, at least, that has run for as long as it may.
const UNASKED: Duration = Duration::from_secs(10 * 60);

/// How long an outcome is kept once it has been told: for a client to whom the answer did not get through.
const TOLD: Duration = Duration::from_secs(60);

/// What one principal's tasks, and all together, may hold.
const OF_ONE: Load = Load { tasks: 64, bytes: 128 * 1024 * 1024 };
const OF_ALL: Load = Load { tasks: 512, bytes: 256 * 1024 * 1024 };

/// What the result of a command can come to: two outputs, whose bytes may each take three as structured content and six
/// in its text, though not the same bytes both.
const COMMAND_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What a few words come to, however long the names in them are.
const WORDS_BYTES_MAX: usize = 64 * 1024;

/// The most that a call holds, its outcome included, if it is one that can take long enough to become a task.
pub(super) fn bytes_max(call: &CallToolRequestParams) -> Option<usize> {
    let outcome = match &*call.name {
        "execute" | "install_packages" => COMMAND_BYTES_MAX,
        "create_environment" => WORDS_BYTES_MAX,
        _ => return None,
    };
    let arguments = call.arguments.iter().flat_map(|arguments| arguments.values());
    Some(arguments.map(outcome::value_weight).sum::<usize>().saturating_add(outcome))
}

/// A call that is handed over.
pub(super) struct Call {
    pub(super) owner: Principal,
    pub(super) tool: String,
    /// Runs to its end after `cancelled` too, but soon.
    pub(super) running: BoxFuture<'static, Outcome>,
    pub(super) cancelled: CancellationToken,
    pub(super) progress: Progress,
    /// Its arguments and its outcome take no more together.
    pub(super) bytes_max: usize,
}

/// The tasks of all principals.
#[derive(Clone, Debug)]
pub(super) struct Tasks {
    table: Arc<Mutex<Table>>,
    /// How long a task may run, and how long it is known.
    times: Times,
    running: TaskTracker,
    /// Cancelled when nothing may go on any more.
    stop: CancellationToken,
}

#[derive(Clone, Copy, Debug)]
struct Times {
    run: Duration,
    known: Duration,
    told: Duration,
}

#[derive(Debug, Default)]
struct Table {
    closing: bool,
    entries: HashMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    owner: Principal,
    created_at: SystemTime,
    updated_at: SystemTime,
    created: Instant,
    known_until: Instant,
    state: State,
    /// Wakes the one who forgets the task when it is to be forgotten sooner.
    sooner: Arc<Notify>,
}

#[derive(Debug)]
enum State {
    Working { cancelled: CancellationToken, progress: Progress, bytes_max: usize },
    Ended { payload: Arc<TaskPayload>, bytes: usize },
}

/// How much some tasks hold.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    tasks: usize,
    bytes: usize,
}

impl Load {
    /// With another task of so many bytes.
    fn and(self, bytes: usize) -> Self {
        Self { tasks: self.tasks + 1, bytes: self.bytes.saturating_add(bytes) }
    }

    fn fits(self, limit: Self) -> bool {
        self.tasks <= limit.tasks && self.bytes <= limit.bytes
    }
}

impl Entry {
    /// What it holds, or may come to hold.
    fn bytes(&self) -> usize {
        match &self.state {
            State::Working { bytes_max, .. } => *bytes_max,
            State::Ended { bytes, .. } => *bytes,
        }
    }

    fn task(&self, id: &str, status: TaskStatus) -> Task {
        let [created_at, updated_at] = [self.created_at, self.updated_at].map(results::rfc3339);
        let ttl = self.known_until.saturating_duration_since(self.created);
        Task::new(id, status, created_at, updated_at)
            .with_ttl_ms(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))
            .with_poll_interval_ms(POLL_INTERVAL_MS)
    }
}

impl Table {
    fn has_room(&self, owner: &Principal, bytes: usize) -> bool {
        let load = |mine: bool| {
            let counted = self.entries.values().filter(|entry| !mine || entry.owner == *owner);
            counted.fold(Load::default(), |load, entry| load.and(entry.bytes())).and(bytes)
        };
        load(true).fits(OF_ONE) && load(false).fits(OF_ALL)
    }

    /// An entry of this principal's.
    fn of(&mut self, owner: &Principal, id: &str) -> Result<&mut Entry, ErrorData> {
        self.entries.get_mut(id).filter(|entry| entry.owner == *owner).ok_or_else(errors::unknown_task)
    }
}

impl Tasks {
    /// No tasks yet; no call takes longer than `call_max`.
    pub(super) fn new(call_max: Duration) -> Self {
        let run = call_max + SLOW_PULL;
        let times = Times { run, known: run + UNASKED, told: TOLD };
        Self { table: Arc::default(), times, running: TaskTracker::new(), stop: CancellationToken::new() }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }

    /// Makes a task of a call, which is known before this returns; the call comes back if there is no room for it.
    pub(super) fn hand_over(&self, call: Call) -> Result<Task, BoxFuture<'static, Outcome>> {
        let Call { owner, tool, running, cancelled, progress, bytes_max } = call;
        let mut table = self.table();
        if table.closing || !table.has_room(&owner, bytes_max) {
            return Err(running);
        }
        let (now, sooner) = (SystemTime::now(), Arc::new(Notify::new()));
        let created = Instant::now();
        let entry = Entry {
            owner,
            created_at: now,
            updated_at: now,
            created,
            known_until: created + self.times.known,
            state: State::Working { cancelled: cancelled.clone(), progress, bytes_max },
            sooner: Arc::clone(&sooner),
        };
        let id = Uuid::new_v4().to_string();
        let task = entry.task(&id, TaskStatus::Working);
        table.entries.insert(id.clone(), entry);
        let own = Own { tasks: self.clone(), id };
        let life = own.live(tool, running, cancelled, sooner);
        let stop = self.stop.clone();
        self.running.spawn(async move {
            tokio::select! {
                () = life => {}
                () = stop.cancelled() => {}
            }
        });
        Ok(task)
    }

    /// How far a task is, or what it came to.
    pub(super) fn get(&self, owner: &Principal, id: &str) -> Result<DetailedTask, ErrorData> {
        let (task, payload) = {
            let mut table = self.table();
            let entry = table.of(owner, id)?;
            match &entry.state {
                State::Working { progress, .. } => {
                    let message = progress.status();
                    return Ok(DetailedTask::new(
                        entry.task(id, TaskStatus::Working).with_status_message(message),
                        TaskPayload::Working,
                    ));
                }
                State::Ended { payload, .. } => {
                    let payload = Arc::clone(payload);
                    let told_until = Instant::now() + self.times.told;
                    if told_until < entry.known_until {
                        entry.known_until = told_until;
                        entry.sooner.notify_one();
                    }
                    (entry.task(id, payload.status()), payload)
                }
            }
        };
        // A copy may be megabytes, which nobody else waits for.
        Ok(DetailedTask::new(task, TaskPayload::clone(&payload)))
    }

    /// What the outcome of a task holds, if it has one.
    pub(super) fn outcome_bytes(&self, owner: &Principal, id: &str) -> Result<usize, ErrorData> {
        Ok(match &self.table().of(owner, id)?.state {
            State::Working { .. } => 0,
            State::Ended { bytes, .. } => *bytes,
        })
    }

    /// Ends what a task runs, if it still does.
    pub(super) fn cancel(&self, owner: &Principal, id: &str) -> Result<(), ErrorData> {
        match &self.table().of(owner, id)?.state {
            State::Working { cancelled, .. } => cancelled.cancel(),
            State::Ended { .. } => {}
        }
        Ok(())
    }

    /// Takes answers to questions. No task of ours asks any, and answers that nobody has asked for are to be ignored.
    pub(super) fn update(&self, owner: &Principal, id: &str) -> Result<(), ErrorData> {
        self.table().of(owner, id).map(|_| ())
    }

    /// Takes no more calls, and cancels those that there are: a client that polls cannot reach a server that goes.
    pub(super) fn close(&self) {
        let mut table = self.table();
        table.closing = true;
        for entry in table.entries.values() {
            if let State::Working { cancelled, .. } = &entry.state {
                cancelled.cancel();
            }
        }
    }

    /// Drops what still runs.
    pub(super) async fn end(&self) {
        self.close();
        self.stop.cancel();
        self.running.close();
        self.running.wait().await;
    }
}

/// The entry of one task, which goes with this.
struct Own {
    tasks: Tasks,
    id: String,
}

impl Own {
    async fn live(
        self,
        tool: String,
        running: BoxFuture<'static, Outcome>,
        cancelled: CancellationToken,
        sooner: Arc<Notify>,
    ) {
        let outcome = to_its_end(running, cancelled, self.tasks.times.run).await;
        let (payload, bytes) = outcome::settle(&tool, outcome);
        if let Some(entry) = self.tasks.table().entries.get_mut(&self.id) {
            entry.updated_at = SystemTime::now();
            // A call that took longer than it may is told all the same.
            entry.known_until = entry.known_until.max(Instant::now() + self.tasks.times.told);
            entry.state = State::Ended { payload: Arc::new(payload), bytes };
        }
        loop {
            let known_until = self.tasks.table().entries.get(&self.id).map(|entry| entry.known_until);
            let Some(known_until) = known_until.filter(|until| *until > Instant::now()) else { return };
            tokio::select! {
                () = sleep_until(known_until) => {}
                () = sooner.notified() => {}
            }
        }
    }
}

/// What a call comes to, of which nothing is left then; one that goes on for too long is cancelled.
async fn to_its_end(
    mut running: BoxFuture<'static, Outcome>,
    cancelled: CancellationToken,
    limit: Duration,
) -> Outcome {
    tokio::select! {
        outcome = &mut running => outcome,
        () = sleep(limit) => {
            cancelled.cancel();
            running.await
        }
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.tasks.table().entries.remove(&self.id);
    }
}

#[cfg(test)]
mod tests;
