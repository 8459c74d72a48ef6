// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Starting machines, and the calls into a running one.
//!
//! These traits are the only async code in the domain. `machines` implements them with virtual machines; the behaviour
//! tests implement them with the real agent in-process.

use std::{error::Error, future::Future, pin::Pin, sync::Arc, time::Duration};

use super::{
    call_fault::CallFault,
    capabilities::Capabilities,
    command::{Command, Executed, OutputStream},
    egress::Network,
    environment_id::EnvironmentId,
    file::{FileContent, FileRange, Listing, Writing},
    guest_path::GuestPath,
    image::ImageRef,
    stage::Stage,
};

/// A boxed future, so that the traits can be trait objects.
pub type PortFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Starts machines: with libkrun, with QEMU, and in the behaviour tests the agent on an in-memory pipe.
pub trait Machines: Send + Sync {
    /// Starts one machine and resolves when its agent serves calls.
    ///
    /// `stages` is called with each stage as it begins. When `cancelled` resolves, the start is cancelled: the future
    /// then resolves with a fault once everything of the machine is released, or with a machine that became ready just
    /// before, which the caller must stop. Dropping the future also ends the machine, but without a signal for when
    /// that is done.
    ///
    /// # Errors
    /// [`StartFault`] names the stage that failed; everything taken for the machine has been released by then.
    fn start<'a>(
        &'a self,
        spec: &'a MachineSpec,
        stages: &'a (dyn Fn(Stage) + Send + Sync),
        cancelled: PortFuture<'a, ()>,
    ) -> PortFuture<'a, Result<Arc<dyn Machine>, StartFault>>;
}

/// One running machine.
pub trait Machine: Send + Sync {
    /// The agent that serves calls in the guest.
    fn agent(&self) -> &dyn Agent;

    /// Returns the last lines of the machine's console, also after the machine has ended. Their number and length are
    /// limited and their control characters are escaped.
    fn console(&self) -> Vec<String>;

    /// Resolves with the reason when the machine ends without `stop`.
    fn gone(&self) -> PortFuture<'_, String>;

    /// Ends the machine and releases everything it held. Idempotent; limited by the implementation's own grace period.
    fn stop(&self) -> PortFuture<'_, ()>;
}

/// Calls into one guest.
pub trait Agent: Send + Sync {
    /// The capabilities of the guest, found by the agent when it started.
    fn capabilities(&self) -> &Capabilities;

    /// Runs a command until it exits, times out or is cancelled. `on_output` gets the output as it arrives; the result
    /// holds none of it.
    fn exec<'a>(
        &'a self,
        command: Command,
        cancelled: PortFuture<'a, ()>,
        on_output: &'a mut (dyn FnMut(OutputStream, &[u8]) + Send),
    ) -> PortFuture<'a, Result<Executed, CallFault>>;

    /// Writes a file and creates its parent folders; returns the number of bytes written.
    fn write_file<'a>(
        &'a self,
        path: &'a GuestPath,
        content: &'a [u8],
        how: Writing,
    ) -> PortFuture<'a, Result<u64, CallFault>>;

    /// Reads a file, or the part of it that `range` names; at most `bytes_max` of either.
    fn read_file<'a>(
        &'a self,
        path: &'a GuestPath,
        range: Option<FileRange>,
        bytes_max: u64,
    ) -> PortFuture<'a, Result<FileContent, CallFault>>;

    /// Lists at most `entries_max` of a folder's entries, sorted by name.
    fn list_files<'a>(
        &'a self,
        path: &'a GuestPath,
        entries_max: u32,
        recursive: bool,
    ) -> PortFuture<'a, Result<Listing, CallFault>>;
}

/// The specification of one machine.
#[derive(Clone, Debug)]
pub struct MachineSpec {
    /// The environment that it serves; its files and log lines carry this id.
    pub id: EnvironmentId,
    /// The root file system.
    pub image: ImageRef,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Size of the scratch disk in MiB; it is sparse.
    pub disk_mib: u32,
    /// From the start of the virtual machine to the agent's hello.
    pub boot_timeout: Duration,
    /// Its network; `None` if it can reach nothing.
    pub network: Option<Network>,
}

/// A machine could not be started.
#[derive(Debug, thiserror::Error)]
#[error("failed while {}", stage.describe())]
pub struct StartFault {
    /// The stage that failed.
    pub stage: Stage,
    /// The last lines of its console, if it printed any; see [`Machine::console`].
    pub console: Vec<String>,
    /// The cause, with operands.
    pub source: Box<dyn Error + Send + Sync>,
}
