// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Requests to the driver of an environment, and the call that a begin request returns.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio_util::{sync::CancellationToken, task::task_tracker::TaskTrackerToken};

use super::{fault::Fault, installation_queue::KilledInstallations, refusals::Refusals, saving::SavedState};
use crate::{
    domain::{egress::Policy, environment::Environment, machine::Machine, repository::DestroyReason, saved::SavedName},
    saved::SavedEntry,
};

/// Maximum number of requests in a driver's queue; senders wait while the queue is full.
pub(super) const REQUESTS_MAX: usize = 16;

/// The tokens of a call that is about to begin.
#[derive(Debug)]
pub(super) struct Beginning {
    pub(super) counted: TaskTrackerToken,
    pub(super) place: OwnedSemaphorePermit,
    /// The time of the request.
    pub(super) requested: tokio::time::Instant,
}

/// A request to the driver of an environment.
#[derive(Debug)]
pub(super) enum Request {
    /// Begins a call, for which a suspended environment comes back. A shutdown waits until the token is dropped.
    Begin(Beginning, oneshot::Sender<Result<Call, Fault>>),
    /// Takes a snapshot for a fork.
    Fork(ForkRequest),
    /// Saves the environment under a name, and then destroys it. If the answer is a fault, the environment still
    /// exists.
    Save(SavedName, oneshot::Sender<Result<SavedEntry, Fault>>),
    /// Suspends the environment because the server stops, or destroys it if it cannot be suspended. Running calls are
    /// cut off. The answer comes when no machine is left.
    Suspend(oneshot::Sender<()>),
    /// Destroys the environment. The answer is sent when all resources of the environment are released, or when the
    /// saved state of a suspended environment could not be removed.
    Destroy(DestroyReason, oneshot::Sender<Result<(), Fault>>),
    /// Suspends or destroys the environment if it has reached its idle timeout.
    Expire,
}

impl Request {
    /// Whether the caller has left, so that the request must have no effect. A save and a destruction happen even so.
    pub(super) fn is_abandoned(&self) -> bool {
        match self {
            Self::Begin(_, reply) => reply.is_closed(),
            Self::Fork(fork) => fork.reply.is_closed(),
            Self::Save(..) | Self::Suspend(_) | Self::Destroy(..) | Self::Expire => false,
        }
    }
}

/// A request for the source of a fork.
#[derive(Debug)]
pub(super) struct ForkRequest {
    /// Whether the request waits until no call runs.
    pub(super) waits: bool,
    pub(super) reply: oneshot::Sender<Result<ForkSource, Fault>>,
}

/// The state and the parameters that a fork has from its source.
#[derive(Debug)]
pub(super) struct ForkSource {
    pub(super) network: Option<Policy>,
    pub(super) state: SavedState,
    pub(super) killed_installations: KilledInstallations,
    pub(super) memory_kills_told: u64,
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
    /// The time for which the call waited for a machine that stood still or came back.
    pub(super) waited_for_machine: Duration,
    /// Cancelled when the server stops and does not wait for the call any longer.
    pub(super) cut_off: CancellationToken,
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
