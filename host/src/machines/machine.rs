// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! A running machine, as the services see it: calls go to its agent, its life to the task that owns it.

use std::sync::{Arc, Mutex};

use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{console::ConsoleTail, owner::End};
use crate::{
    agent::AgentClient,
    domain::{
        guest_path::GuestPath,
        ports::{
            CallFault, Capabilities, Command, Ended, FileContent, FileRange, Listing, Machine, OutputStream,
            PortFuture, Writing,
        },
    },
    mutex::lock,
    printable,
};

/// Why a machine ended, in a sentence with its cause.
const REASON_BYTES_MAX: usize = 500;

/// One machine; dropping it stops it.
#[derive(Debug)]
pub(super) struct Vm {
    pub(super) agent: Arc<AgentClient>,
    pub(super) console: Arc<Mutex<ConsoleTail>>,
    pub(super) end: watch::Receiver<Option<End>>,
    /// Cancelled, it ends the machine.
    pub(super) stop: CancellationToken,
    /// Cancels `stop` when the last handle on the machine is dropped.
    pub(super) _stop_on_drop: DropGuard,
}

impl Vm {
    // The owner always sets the end; a closed channel would mean that it panicked.
    async fn ended(&self) -> End {
        let mut end = self.end.clone();
        match end.wait_for(Option::is_some).await.map(|end| end.clone()) {
            Ok(Some(end)) => end,
            Ok(None) | Err(_) => End::Gone("the task that owned the machine is lost".to_owned()),
        }
    }
}

impl Machine for Vm {
    fn capabilities(&self) -> &Capabilities {
        self.agent.capabilities()
    }

    fn exec<'a>(
        &'a self,
        command: Command,
        cancelled: PortFuture<'a, ()>,
        on_output: &'a mut (dyn FnMut(OutputStream, &[u8]) + Send),
    ) -> PortFuture<'a, Result<Ended, CallFault>> {
        Box::pin(self.agent.exec(command, cancelled, on_output))
    }

    fn write_file<'a>(
        &'a self,
        path: &'a GuestPath,
        content: &'a [u8],
        how: Writing,
    ) -> PortFuture<'a, Result<u64, CallFault>> {
        Box::pin(self.agent.write_file(path, content, how))
    }

    fn read_file<'a>(
        &'a self,
        path: &'a GuestPath,
        range: Option<FileRange>,
        bytes_max: u64,
    ) -> PortFuture<'a, Result<FileContent, CallFault>> {
        Box::pin(self.agent.read_file(path, range, bytes_max))
    }

    fn list_files<'a>(
        &'a self,
        path: &'a GuestPath,
        entries_max: u32,
        recursive: bool,
    ) -> PortFuture<'a, Result<Listing, CallFault>> {
        Box::pin(self.agent.list_files(path, entries_max, recursive))
    }

    fn console(&self) -> Vec<String> {
        lock(&self.console).lines()
    }

    fn gone(&self) -> PortFuture<'_, String> {
        Box::pin(async {
            match self.ended().await {
                // It may hold what the guest, or a process that it took over, has said.
                End::Gone(reason) => printable::text(&reason, REASON_BYTES_MAX),
                // It was told to: that is no news, ever.
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
