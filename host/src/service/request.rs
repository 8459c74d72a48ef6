// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Requests to the driver of an environment, and the call that one of them begins.

use std::{fmt, sync::Arc};

use tokio::sync::{mpsc, oneshot};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::refusals::Refusals;
use crate::domain::{
    environment::{CallRefusal, Environment},
    machine::Machine,
    repository::DestroyReason,
};

/// The length of a driver's request queue; senders wait while it is full.
pub(super) const REQUESTS_MAX: usize = 16;

/// A request to the driver of an environment.
#[derive(Debug)]
pub(super) enum Request {
    /// Begin a call; a shutdown waits until the token is dropped.
    Begin(TaskTrackerToken, oneshot::Sender<Result<Call, CallRefusal>>),
    /// Destroy the environment; the answer comes when everything of it is released.
    Destroy(DestroyReason, oneshot::Sender<()>),
    /// Destroy it if it has reached its idle timeout.
    Expire,
}

/// A call that runs in an environment. While it exists, the environment is not idle and a shutdown waits for it.
pub(super) struct Call {
    /// The machine to call.
    pub(super) machine: Arc<dyn Machine>,
    /// A copy of the environment from the time the call began.
    pub(super) environment: Environment,
    /// The network refusals of the environment, still being counted.
    pub(super) refusals: Arc<Refusals>,
    /// Sends the driver the end of the call. Reserved when the call begins, so the message is never lost.
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
