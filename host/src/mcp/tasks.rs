// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Calls that outlive their requests: the extension `io.modelcontextprotocol/tasks` (SEP-2663).
//!
//! ```text
//!           start              call ends              expires
//!  call ─────────▶ working ─────────────▶ ended ─────────────▶ removed
//! ```
//!
//! A call becomes a task once it has run for [`START_AFTER`], if its client can poll. If the limits allow no further
//! task, the call stays an ordinary request and is answered when it ends. No result is therefore removed early to make
//! room for other tasks. Only the principal that made the call can use the task; for others the id does not exist.
//!
//! This module uses only rmcp's types. rmcp's `TaskManager` has no owners of tasks and no memory limit, and it cannot
//! shorten the time for which a result is kept once the client has read it.

mod outcome;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use futures_util::future::BoxFuture;
use rmcp::{
    ErrorData,
    model::{DetailedTask, Task, TaskPayload, TaskStatus},
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;
use waggle_shared::mutex::lock;

use self::outcome::StateBytes;
use super::{errors, failure::Outcome, formats, progress::Progress};
use crate::domain::principal::Principal;

/// The time after which a running call becomes a task. Most calls end earlier and so need no poll.
pub(super) const START_AFTER: Duration = Duration::from_secs(2);

/// The interval at which a client should poll, in milliseconds.
const POLL_INTERVAL_MS: u64 = 1000;

/// The time that a task may run in addition to the longest command. Only the pull of an image can need this time. A
/// pull has no timeout, but each of its blobs has one: 5.8 hours for a blob of 2 GB.
const PULL_ALLOWANCE: Duration = Duration::from_secs(6 * 60 * 60);

/// The time for which a task is kept beyond its maximum run time, so that the client can still read the outcome.
const UNREAD_RETENTION: Duration = Duration::from_secs(10 * 60);

/// The time for which an outcome is kept after the first read, for a client that lost the answer.
const READ_RETENTION: Duration = Duration::from_secs(60);

/// The limits of one principal's tasks, and of all tasks.
const PRINCIPAL_MAX: Load = Load { tasks: 64, bytes: 128 * 1024 * 1024 };
const TOTAL_MAX: Load = Load { tasks: 512, bytes: 256 * 1024 * 1024 };

/// A call that may become a task.
pub(super) struct RunningCall {
    pub(super) owner: Principal,
    pub(super) tool: String,
    /// Resolves soon after `cancelled` is cancelled.
    pub(super) outcome: BoxFuture<'static, Outcome>,
    pub(super) cancelled: CancellationToken,
    pub(super) progress: Progress,
    /// Maximum memory for the arguments and the outcome together.
    pub(super) bytes_max: usize,
}

/// The tasks of all principals.
#[derive(Clone, Debug)]
pub(super) struct Tasks {
    table: Arc<Mutex<Table>>,
    /// Maximum time that a task may run.
    run_max: Duration,
    running: TaskTracker,
    /// Cancelled when the server ends. The cancellation drops all calls that still run.
    stop: CancellationToken,
}

#[derive(Debug, Default)]
struct Table {
    closing: bool,
    records: HashMap<String, Record>,
}

#[derive(Debug)]
struct Record {
    owner: Principal,
    created_at: SystemTime,
    updated_at: SystemTime,
    created: Instant,
    expires_at: Instant,
    state: TaskState,
    /// Wakes the task's own loop when `expires_at` moves to an earlier time.
    expires_sooner: Arc<Notify>,
}

#[derive(Debug)]
enum TaskState {
    Working { cancelled: CancellationToken, progress: Progress, bytes_max: usize },
    Ended { payload: Arc<TaskPayload>, bytes: StateBytes },
}

/// A number of tasks, and their memory.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    tasks: usize,
    bytes: usize,
}

impl Load {
    /// Adds one task of `bytes`.
    fn and(self, bytes: usize) -> Self {
        Self { tasks: self.tasks + 1, bytes: self.bytes.saturating_add(bytes) }
    }

    fn fits(self, limit: Self) -> bool {
        self.tasks <= limit.tasks && self.bytes <= limit.bytes
    }
}

impl Record {
    /// Returns the memory that counts for the task: `bytes_max` while the call runs, then the size of the outcome.
    fn bytes(&self) -> usize {
        match &self.state {
            TaskState::Working { bytes_max, .. } => *bytes_max,
            TaskState::Ended { bytes, .. } => bytes.kept,
        }
    }

    fn task(&self, id: &str, status: TaskStatus) -> Task {
        let [created_at, updated_at] = [self.created_at, self.updated_at].map(formats::rfc3339);
        let ttl = self.expires_at.saturating_duration_since(self.created);
        Task::new(id, status, created_at, updated_at)
            .with_ttl_ms(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))
            .with_poll_interval_ms(POLL_INTERVAL_MS)
    }
}

impl Table {
    /// Whether the limits allow another task of `bytes`.
    fn has_room(&self, owner: &Principal, bytes: usize) -> bool {
        let load = |of_owner: bool| {
            let counted = self.records.values().filter(|record| !of_owner || record.owner == *owner);
            counted.fold(Load::default(), |load, record| load.and(record.bytes())).and(bytes)
        };
        load(true).fits(PRINCIPAL_MAX) && load(false).fits(TOTAL_MAX)
    }

    fn find(&mut self, owner: &Principal, id: &str) -> Result<&mut Record, ErrorData> {
        self.records.get_mut(id).filter(|record| record.owner == *owner).ok_or_else(errors::unknown_task)
    }
}

impl Tasks {
    /// Creates an empty table. `call_max` is the longest of the timeouts for `execute`,
    /// `install_packages` and a machine's boot.
    pub(super) fn new(call_max: Duration) -> Self {
        let run_max = call_max + PULL_ALLOWANCE;
        Self { table: Arc::default(), run_max, running: TaskTracker::new(), stop: CancellationToken::new() }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }

    /// Turns a call into a task. The task can be polled as soon as this function returns.
    ///
    /// # Errors
    /// The call's future, if the limits allow no further task or the server is shutting down. The request must await
    /// it.
    pub(super) fn start(&self, call: RunningCall) -> Result<Task, BoxFuture<'static, Outcome>> {
        let RunningCall { owner, tool, outcome, cancelled, progress, bytes_max } = call;
        let mut table = self.table();
        if table.closing || !table.has_room(&owner, bytes_max) {
            return Err(outcome);
        }
        let (now, expires_sooner) = (SystemTime::now(), Arc::new(Notify::new()));
        let created = Instant::now();
        let record = Record {
            owner: owner.clone(),
            created_at: now,
            updated_at: now,
            created,
            expires_at: created + self.run_max + UNREAD_RETENTION,
            state: TaskState::Working { cancelled: cancelled.clone(), progress, bytes_max },
            expires_sooner: Arc::clone(&expires_sooner),
        };
        let id = Uuid::new_v4().to_string();
        let task = record.task(&id, TaskStatus::Working);
        table.records.insert(id.clone(), record);
        let entry = TaskEntry { tasks: self.clone(), id };
        let run = entry.run((tool, owner), outcome, cancelled, expires_sooner);
        let stop = self.stop.clone();
        self.running.spawn(async move {
            tokio::select! {
                () = run => {}
                () = stop.cancelled() => {}
            }
        });
        Ok(task)
    }

    /// Returns the progress or the outcome of a task. Reading an outcome shortens its retention.
    pub(super) fn get(&self, owner: &Principal, id: &str) -> Result<DetailedTask, ErrorData> {
        let (task, payload) = {
            let mut table = self.table();
            let record = table.find(owner, id)?;
            match &record.state {
                TaskState::Working { progress, .. } => {
                    let message = progress.status();
                    return Ok(DetailedTask::new(
                        record.task(id, TaskStatus::Working).with_status_message(message),
                        TaskPayload::Working,
                    ));
                }
                TaskState::Ended { payload, .. } => {
                    let payload = Arc::clone(payload);
                    let expires_at = Instant::now() + READ_RETENTION;
                    if expires_at < record.expires_at {
                        record.expires_at = expires_at;
                        record.expires_sooner.notify_one();
                    }
                    (record.task(id, payload.status()), payload)
                }
            }
        };
        // The copy may be megabytes, so the lock is released first.
        Ok(DetailedTask::new(task, TaskPayload::clone(&payload)))
    }

    /// Returns the memory of an answer with a task's outcome, which is a copy, and its written form; 0 while the task
    /// is working.
    pub(super) fn outcome_bytes(&self, owner: &Principal, id: &str) -> Result<usize, ErrorData> {
        Ok(match &self.table().find(owner, id)?.state {
            TaskState::Working { .. } => 0,
            TaskState::Ended { bytes, .. } => bytes.kept + bytes.written,
        })
    }

    /// Cancels the call of a task; does nothing if the call has ended.
    pub(super) fn cancel(&self, owner: &Principal, id: &str) -> Result<(), ErrorData> {
        match &self.table().find(owner, id)?.state {
            TaskState::Working { cancelled, .. } => cancelled.cancel(),
            TaskState::Ended { .. } => {}
        }
        Ok(())
    }

    /// Ignores the client's input to a task. The extension requires that unrequested input is ignored, and no tool
    /// requests input.
    pub(super) fn update(&self, owner: &Principal, id: &str) -> Result<(), ErrorData> {
        self.table().find(owner, id).map(|_| ())
    }

    /// Refuses new tasks and cancels all calls. Clients cannot poll a server that has ended.
    pub(super) fn close(&self) {
        let mut table = self.table();
        table.closing = true;
        for record in table.records.values() {
            if let TaskState::Working { cancelled, .. } = &record.state {
                cancelled.cancel();
            }
        }
    }

    /// Drops all tasks, and waits until their calls have ended.
    pub(super) async fn end(&self) {
        self.close();
        self.stop.cancel();
        self.running.close();
        self.running.wait().await;
    }
}

/// Owns the record of one task. Dropping the entry removes the record.
struct TaskEntry {
    tasks: Tasks,
    id: String,
}

impl TaskEntry {
    /// Awaits the outcome of the call, and cancels the call at the time limit. Then keeps the outcome until it expires.
    async fn run(
        self,
        (tool, owner): (String, Principal),
        mut outcome: BoxFuture<'static, Outcome>,
        cancelled: CancellationToken,
        expires_sooner: Arc<Notify>,
    ) {
        let outcome = tokio::select! {
            outcome = &mut outcome => outcome,
            () = sleep(self.tasks.run_max) => {
                cancelled.cancel();
                outcome.await
            }
        };
        let (payload, bytes) = outcome::settle(&tool, &owner, outcome);
        if let Some(record) = self.tasks.table().records.get_mut(&self.id) {
            record.updated_at = SystemTime::now();
            // The outcome of a call that ended after its time limit is still readable for a while.
            record.expires_at = record.expires_at.max(Instant::now() + READ_RETENTION);
            record.state = TaskState::Ended { payload: Arc::new(payload), bytes };
        }
        loop {
            let expires_at = self.tasks.table().records.get(&self.id).map(|record| record.expires_at);
            let Some(expires_at) = expires_at.filter(|at| *at > Instant::now()) else { return };
            tokio::select! {
                () = sleep_until(expires_at) => {}
                () = expires_sooner.notified() => {}
            }
        }
    }
}

impl Drop for TaskEntry {
    fn drop(&mut self) {
        self.tasks.table().records.remove(&self.id);
    }
}

#[cfg(test)]
mod tests;
