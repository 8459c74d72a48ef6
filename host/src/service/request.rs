// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Requests to the driver of an environment, and the call that a begin request returns.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::refusals::Refusals;
use crate::domain::{
    environment::{CallRefusal, Environment},
    machine::Machine,
    repository::DestroyReason,
};

/// Maximum number of requests in a driver's queue; senders wait while the queue is full.
pub(super) const REQUESTS_MAX: usize = 16;

/// The tokens of a call that is about to begin.
#[derive(Debug)]
pub(super) struct Beginning {
    pub(super) counted: TaskTrackerToken,
    pub(super) place: OwnedSemaphorePermit,
}

/// A request to the driver of an environment.
#[derive(Debug)]
pub(super) enum Request {
    /// Begins a call. A shutdown waits until the token is dropped.
    Begin(Beginning, oneshot::Sender<Result<Call, CallRefusal>>),
    /// Destroys the environment. The answer is sent when all resources of the environment are released.
    Destroy(DestroyReason, oneshot::Sender<()>),
    /// Destroys the environment if it has reached its idle timeout.
    Expire,
}

/// A call that runs in an environment. While the call exists, the environment is not idle and a shutdown waits.
pub(super) struct Call {
    pub(super) machine: Arc<dyn Machine>,
    /// A copy of the environment, made when the call began.
    pub(super) environment: Environment,
    /// The live counter of the environment's network refusals; it keeps counting during the call.
    pub(super) refusals: Arc<Refusals>,
    /// The number of killed background processes that callers have been told of.
    pub(super) memory_kills_told: Arc<AtomicU64>,
    /// Permit to tell the driver that the call has ended. The permit is reserved when the call begins, so the message
    /// is never lost.
    pub(super) ended: Option<mpsc::OwnedPermit<()>>,
    /// The call's place among the environment's concurrent calls. It is freed after the driver has been told.
    pub(super) place: Option<OwnedSemaphorePermit>,
    pub(super) _counted: TaskTrackerToken,
}

impl Call {
    /// Returns how many background processes have been killed for want of memory since the last time that a caller was
    /// told.
    pub(super) fn untold_memory_kills(&self) -> u64 {
        let all = self.machine.agent().background_memory_kills();
        all.saturating_sub(self.memory_kills_told.fetch_max(all, Relaxed))
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("environment", &self.environment.id).finish_non_exhaustive()
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Some(ended) = self.ended.take() {
            ended.send(());
        }
        self.place = None;
    }
}
