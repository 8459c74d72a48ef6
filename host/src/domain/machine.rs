// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Traits for starting machines, and for calls into a running machine.
//!
//! These traits are the only async code in the domain. `machines` implements them with virtual machines; the behaviour
//! tests implement them with the real agent in-process.

use std::{any::Any, error::Error, fmt::Debug, future::Future, path::Path, pin::Pin, sync::Arc, time::Duration};

use waggle_images::reference::{ImageRef, PullRights};

use super::{
    call_fault::CallFault,
    capabilities::Capabilities,
    command::{Command, Executed, OutputStream},
    egress::Network,
    environment_id::EnvironmentId,
    file::{FileContent, FileRange, ListOptions, Listing, Writing},
    guest_path::GuestPath,
    principal::Principal,
    stage::Stage,
    start_reason::StartReason,
};

/// A boxed future. Trait objects need boxed futures.
pub type PortFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Starts machines. Implementations use libkrun or QEMU; the behaviour tests run the agent on an in-memory pipe.
pub trait Machines: Send + Sync {
    /// Starts one machine and resolves when its agent serves calls.
    ///
    /// `stages` is called when a stage begins, and with the progress within the stage. When `cancelled` resolves, the
    /// start is cancelled: the future resolves with a fault once all resources of the machine are released. If the
    /// machine became ready just before the cancellation, the future resolves with the machine, and the caller must
    /// stop it. Dropping the future also ends the machine, but does not signal when the machine has ended.
    ///
    /// # Errors
    /// [`StartFault`] contains the stage that failed. All resources of the machine are released before it is returned.
    fn start<'a>(
        &'a self,
        spec: &'a MachineSpec,
        stages: &'a (dyn Fn(Stage) + Send + Sync),
        cancelled: PortFuture<'a, ()>,
    ) -> PortFuture<'a, Result<Arc<dyn Machine>, StartFault>>;

    /// Reads and verifies the files that [`Snapshot::write`] wrote into `folder`. If the memory does not fit this
    /// program, this host or its boot, the snapshot has only the disk. The folder must exist until the snapshot, and
    /// each machine that started from it, has ended.
    ///
    /// # Errors
    /// [`SnapshotFault::Damaged`] if the files are not what was written.
    fn read_snapshot<'a>(&'a self, folder: &'a Path) -> PortFuture<'a, Result<Arc<dyn Snapshot>, SnapshotFault>>;
}

/// The state from which a machine starts.
#[derive(Clone, Debug)]
pub enum MachineSource {
    /// The image: the machine boots, with an empty scratch disk.
    Image,
    /// The state of another machine with the same image and sizes.
    Snapshot(Arc<dyn Snapshot>),
}

/// The state of a machine at one moment: its memory, devices and disk, or only its disk. Several machines can start
/// from one snapshot. Its resources are released with the last reference.
pub trait Snapshot: Any + Debug + Send + Sync {
    /// Whether the snapshot has the memory. Without it, a machine that starts from the snapshot boots, and has only the
    /// files.
    fn has_memory(&self) -> bool;

    /// Writes the snapshot's files into `folder`, which is empty and has mode 0700. When the future is ready, the files
    /// are on the disk, with their digests.
    ///
    /// # Errors
    /// [`SnapshotFault::Failed`]. The caller removes the folder.
    fn write<'a>(&'a self, folder: &'a Path) -> PortFuture<'a, Result<(), SnapshotFault>>;
}

/// The fate of a machine after its snapshot.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Afterwards {
    GoOn,
    End,
}

/// A failure to take, write or read a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotFault {
    /// This back end or host has no snapshots. The reason is for the client.
    #[error("machines of this server cannot be saved: {why}")]
    Unsupported { why: String },
    /// The files of a snapshot are incomplete or changed.
    #[error("the saved files are damaged")]
    Damaged { source: Box<dyn Error + Send + Sync> },
    /// The host failed. The cause is for the operator.
    #[error("failed to save or read the machine")]
    Failed { source: Box<dyn Error + Send + Sync> },
}

/// One running machine.
pub trait Machine: Send + Sync {
    /// Returns the agent that serves calls in the guest.
    fn agent(&self) -> &dyn Agent;

    /// Returns the last lines of the machine's console, also after the machine has ended. The number and length of the
    /// lines are limited, and control characters are escaped.
    fn console(&self) -> Vec<String>;

    /// Whether the machine goes on with the memory of the snapshot that it started from. False if it booted.
    fn has_resumed(&self) -> bool;

    /// Takes a snapshot while the machine stands still. No call may run. With [`Afterwards::End`], the machine has
    /// ended when the future is ready, and `gone` does not report this end. The implementation limits the time.
    ///
    /// # Errors
    /// After an error the machine goes on, unless `gone` reports its end.
    fn snapshot(&self, afterwards: Afterwards) -> PortFuture<'_, Result<Arc<dyn Snapshot>, SnapshotFault>>;

    /// Resolves with the reason when the machine ends without `stop`.
    fn gone(&self) -> PortFuture<'_, String>;

    /// Ends the machine and releases all its resources. Idempotent; the implementation's grace period limits the time.
    fn stop(&self) -> PortFuture<'_, ()>;
}

/// Calls into one guest.
pub trait Agent: Send + Sync {
    /// Returns the capabilities of the guest, which the agent detected at startup.
    fn capabilities(&self) -> &Capabilities;

    /// Returns how many background processes the guest's kernel has killed for want of memory, as last reported.
    fn background_memory_kills(&self) -> u64;

    /// Runs a command until it exits, times out or is cancelled. `on_output` receives the output as it arrives; the
    /// result does not contain the output.
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

    /// Reads a file, or the part of the file in `range`. The limit is `bytes_max` in both cases.
    fn read_file<'a>(
        &'a self,
        path: &'a GuestPath,
        range: Option<FileRange>,
        bytes_max: u64,
    ) -> PortFuture<'a, Result<FileContent, CallFault>>;

    /// Lists a page of a folder's entries.
    fn list_files<'a>(
        &'a self,
        path: &'a GuestPath,
        options: &'a ListOptions,
    ) -> PortFuture<'a, Result<Listing, CallFault>>;
}

/// The specification of one machine.
#[derive(Clone, Debug)]
pub struct MachineSpec {
    /// Id of the environment that the machine serves. The machine's files and log lines carry this id.
    pub id: EnvironmentId,
    /// The owner of the environment, to limit the log lines that one caller can cause.
    pub owner: Principal,
    /// The image of the root file system.
    pub image: ImageRef,
    /// The state from which the machine starts.
    pub source: MachineSource,
    /// The rights with which the image is pulled.
    pub pull_rights: PullRights,
    /// Number of virtual CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Size of the sparse scratch disk in MiB.
    pub disk_mib: u32,
    /// Maximum time from the start of the virtual machine to the agent's hello.
    pub boot_timeout: Duration,
    /// The network; `None` for a machine without a network.
    pub network: Option<Network>,
}

/// A failure to start a machine.
#[derive(Debug, thiserror::Error)]
#[error("failed while {}", stage.describe())]
pub struct StartFault {
    pub stage: Stage,
    /// The reason, for the client. The fault and its causes are for the operator.
    pub reason: StartReason,
    /// The agent's last message before the machine ended, for the client as well; escaped and limited in length.
    pub agent_message: Option<String>,
    /// The last lines of the machine's console, if it printed any; see [`Machine::console`].
    pub console: Vec<String>,
    pub source: Box<dyn Error + Send + Sync>,
}

impl StartFault {
    /// Returns the text for the client, which contains nothing of the fault's source.
    #[must_use]
    pub fn for_client(&self) -> String {
        let said = self.agent_message.iter().map(|message| format!("; the agent said: {message}"));
        format!("{self}: {}", self.reason) + &said.collect::<String>()
    }
}
