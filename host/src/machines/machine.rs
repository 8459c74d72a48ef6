// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! A running machine. It passes calls to its agent, and stop requests to the task that owns the machine.

use std::sync::{Arc, Mutex};

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use waggle_shared::{mutex::lock, printable};

use super::{console::ConsoleTail, owner::End, snapshotting::SnapshotRequest};
use crate::{
    agent::AgentClient,
    domain::machine::{Afterwards, Agent, Machine, PortFuture, Snapshot, SnapshotFault},
};

/// Maximum length of the reason for a machine's end, in bytes.
const REASON_BYTES_MAX: usize = 500;

/// One machine. Dropping it stops the machine.
#[derive(Debug)]
pub(super) struct Vm {
    pub(super) agent: Arc<AgentClient>,
    pub(super) console: Arc<Mutex<ConsoleTail>>,
    pub(super) snapshots: mpsc::Sender<SnapshotRequest>,
    pub(super) has_resumed: bool,
    pub(super) end: watch::Receiver<Option<End>>,
    /// Cancelled to stop the machine.
    pub(super) stop: CancellationToken,
    /// Cancels `stop` when this `Vm` is dropped.
    pub(super) _stop_on_drop: DropGuard,
}

impl Vm {
    // The owner sets the end before it closes the channel, except if the owner panics.
    async fn ended(&self) -> End {
        let mut end = self.end.clone();
        match end.wait_for(Option::is_some).await.map(|end| end.clone()) {
            Ok(Some(end)) => end,
            Ok(None) | Err(_) => End::Gone("the task that owns the machine panicked".to_owned()),
        }
    }
}

impl Machine for Vm {
    fn agent(&self) -> &dyn Agent {
        &*self.agent
    }

    fn console(&self) -> Vec<String> {
        lock(&self.console).lines()
    }

    fn has_resumed(&self) -> bool {
        self.has_resumed
    }

    fn snapshot(&self, afterwards: Afterwards) -> PortFuture<'_, Result<Arc<dyn Snapshot>, SnapshotFault>> {
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            // If the machine has ended, the request is dropped, and with it `reply`.
            let _ = self.snapshots.send(SnapshotRequest { afterwards, reply }).await;
            match answer.await {
                Ok(Ok(snapshot)) => {
                    if afterwards == Afterwards::End {
                        self.ended().await;
                    }
                    Ok(snapshot as Arc<dyn Snapshot>)
                }
                Ok(Err(fault)) => Err(fault),
                Err(ended) => Err(SnapshotFault::Failed { source: ended.into() }),
            }
        })
    }

    fn gone(&self) -> PortFuture<'_, String> {
        Box::pin(async {
            match self.ended().await {
                // The reason may contain text from the guest, or from a process that the guest has compromised.
                End::Gone(reason) => printable::text(&reason, REASON_BYTES_MAX),
                // A requested stop is not reported.
                End::Stopped => std::future::pending().await,
            }
        })
    }

    fn stop(&self) -> PortFuture<'_, ()> {
        Box::pin(async {
            self.stop.cancel();
            self.ended().await;
        })
    }
}
