// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Starts a machine, for a new environment or for one that comes back.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::Driver;
use crate::{
    domain::{
        lifecycle::{Event, State},
        machine::{Machine, MachineSource, MachineSpec, Machines, StartFault},
        repository::DestroyReason,
    },
    service::request::Request,
};

/// The outcome of a start.
pub(super) enum Boot {
    Started(Arc<dyn Machine>),
    Failed(StartFault),
    /// Contains the machine, if the machine became ready before the cancellation took effect.
    Cancelled(Option<Arc<dyn Machine>>),
}

impl Driver {
    /// Starts the machine. If the environment is destroyed or abandoned meanwhile, or the server suspends it, cancels
    /// the start. Returns only after the start has ended, even if cancelled: until then the machine may exist, and
    /// needs its slot.
    ///
    /// Begin requests are refused in a new environment, and wait in one that comes back.
    pub(super) async fn boot(&mut self, machines: &dyn Machines) -> Boot {
        // Afterwards the machine has what it needs of the snapshot.
        let source = self.snapshot.take().map_or(MachineSource::Image, MachineSource::Snapshot);
        let (spec, journal) = (MachineSpec { source, ..self.spec.clone() }, Arc::clone(&self.journal));
        let publish = |stage| journal.note_stage(stage);
        let cancelled = CancellationToken::new();
        let abandoned = self.abandoned.clone();
        let mut start = machines.start(&spec, &publish, Box::pin(cancelled.cancelled()));
        loop {
            let wanted = !cancelled.is_cancelled();
            tokio::select! {
                outcome = &mut start => return match outcome {
                    outcome if !wanted => Boot::Cancelled(outcome.ok()),
                    Ok(machine) => Boot::Started(machine),
                    Err(fault) => Boot::Failed(fault),
                },
                () = abandoned.cancelled(), if wanted => self.cancel(&cancelled),
                request = self.inbox.arrival() => match request {
                    Some(Request::Destroy(reason, waiter)) => {
                        self.destroy(reason, waiter);
                        self.cancel(&cancelled);
                    }
                    Some(Request::Suspend(done)) if self.environment.state() == State::Resuming => {
                        self.stopping = Some(done);
                        cancelled.cancel();
                    }
                    // A new environment has nothing to save.
                    Some(Request::Suspend(done)) => {
                        self.stopping = Some(done);
                        self.doom(DestroyReason::Shutdown);
                        self.cancel(&cancelled);
                    }
                    Some(Request::Expire) => {}
                    Some(other) if self.environment.state() == State::Resuming => self.hold_request(other),
                    Some(other) => self.refuse(other),
                    None => self.cancel(&cancelled),
                },
            }
        }
    }

    fn cancel(&mut self, start: &CancellationToken) {
        // One that comes back has a saved state until that has been removed.
        if self.environment.state() != State::Resuming {
            self.apply(Event::DestroyRequested);
        }
        start.cancel();
    }
}
