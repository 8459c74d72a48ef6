// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Requests to the driver of an environment, and the call that a begin request returns.

use std::{fmt, sync::Arc};

use tokio::sync::{mpsc, oneshot};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::refusals::Refusals;
use crate::domain::{
    environment::{CallRefusal, Environment},
    machine::Machine,
    repository::DestroyReason,
};

/// Maximum number of requests in a driver's queue; senders wait while the queue is full.
pub(super) const REQUESTS_MAX: usize = 16;

/// A request to the driver of an environment.
#[derive(Debug)]
pub(super) enum Request {
    /// Begins a call. A shutdown waits until the token is dropped.
    Begin(TaskTrackerToken, oneshot::Sender<Result<Call, CallRefusal>>),
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
    /// Permit to tell the driver that the call has ended. The permit is reserved when the call begins, so the message
    /// is never lost.
    pub(super) ended: Option<mpsc::OwnedPermit<()>>,
    pub(super) _counted: TaskTrackerToken,
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
    }
}
