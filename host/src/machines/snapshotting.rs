// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Takes snapshots of a running machine, on behalf of the task that owns the machine.
//!
//! ```text
//!  hold ─▶ most of the memory is copied ─▶ stop ─▶ changes of the memory, disk, devices ─▶ continue, or end
//! ```
//!
//! If the machine ends, its own files become those of the snapshot, as far as no other machine uses them.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    sync::Arc,
};

use tokio::{sync::oneshot, task::spawn_blocking};
use tokio_util::sync::CancellationToken;

use super::{
    launch_plan::LaunchPlan,
    memory_file::MemoryFile,
    runner_messages::{Command, SnapshotParts},
    runner_process::{CommandFault, RunnerProcess},
    snapshot::{GuestFile, Pasts, SavedDisk, SavedMemory, VmSnapshot, read_devices},
};
use crate::{
    agent::AgentClient,
    domain::machine::{Afterwards, SnapshotFault},
};

/// Name of the file for the state of the devices, while the snapshot is taken.
const DEVICES: &str = "devices";

/// A request for a snapshot.
#[derive(Debug)]
pub(super) struct SnapshotRequest {
    pub(super) afterwards: Afterwards,
    pub(super) reply: Reply,
}

type Reply = oneshot::Sender<Result<Arc<VmSnapshot>, SnapshotFault>>;

/// The snapshot of a machine that ends with it.
#[derive(Debug)]
pub(super) struct Taken {
    snapshot: VmSnapshot,
    reply: Reply,
}

impl Taken {
    /// Answers the request. The VMM must have ended.
    pub(super) fn deliver(self) {
        let Self { snapshot, reply } = self;
        // If the caller has left, the snapshot is dropped.
        let _ = reply.send(Ok(Arc::new(snapshot)));
    }
}

#[derive(Debug, thiserror::Error)]
#[error("failed to {step}")]
struct StepFault {
    step: &'static str,
    source: io::Error,
}

fn failed(step: &'static str, source: io::Error) -> SnapshotFault {
    SnapshotFault::Failed { source: StepFault { step, source }.into() }
}

/// Takes a snapshot and answers the request. Returns the snapshot if the machine ends with it.
///
/// # Errors
/// The machine may stand still, for this reason, and must be ended.
pub(super) async fn answer(
    request: SnapshotRequest,
    plan: &LaunchPlan,
    runner: &mut RunnerProcess,
    agent: &AgentClient,
    stop: &CancellationToken,
) -> Result<Option<Taken>, String> {
    let SnapshotRequest { afterwards, reply } = request;
    let taken = tokio::select! {
        taken = take(afterwards, plan, runner, agent) => taken,
        // The machine ends, and with it the snapshot.
        () = stop.cancelled() => return Ok(None),
    };
    match taken {
        Ok(snapshot) if afterwards == Afterwards::End => Ok(Some(Taken { snapshot, reply })),
        Ok(snapshot) => {
            let _ = reply.send(Ok(Arc::new(snapshot)));
            Ok(None)
        }
        Err(Fault::GoesOn(fault)) => {
            let _ = reply.send(Err(fault));
            Ok(None)
        }
        Err(Fault::StandsStill(source)) => {
            let reason = format!("the machine stands still after a snapshot: {source}");
            let _ = reply.send(Err(SnapshotFault::Failed { source: source.into() }));
            Err(reason)
        }
    }
}

/// A snapshot failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("the machine continues without a snapshot")]
    GoesOn(#[source] SnapshotFault),
    /// The machine must be ended.
    #[error("the machine stands still without a snapshot")]
    StandsStill(#[source] CommandFault),
}

impl From<SnapshotFault> for Fault {
    fn from(fault: SnapshotFault) -> Self {
        Self::GoesOn(fault)
    }
}

async fn take(
    afterwards: Afterwards,
    plan: &LaunchPlan,
    runner: &mut RunnerProcess,
    agent: &AgentClient,
) -> Result<VmSnapshot, Fault> {
    let held = agent.hold().await;
    held.map_err(|source| SnapshotFault::Failed { source: source.into() })?;
    take_held(afterwards, plan, runner, Pasts::UNKNOWN).await
}

/// Takes a snapshot of a machine whose agent holds, or has not been reached yet.
pub(super) async fn take_held(
    afterwards: Afterwards,
    plan: &LaunchPlan,
    runner: &mut RunnerProcess,
    pasts: Pasts,
) -> Result<VmSnapshot, Fault> {
    let continues = afterwards == Afterwards::GoOn;
    let disk = SavedDisk::new(&plan.run_dirs, &plan.orders.run_dir)
        .map_err(|source| SnapshotFault::Failed { source: source.into() })?;
    let Some((own, is_shared)) = plan.start.memory() else {
        if continues {
            let why = "this back end cannot copy a running machine; QEMU can".to_owned();
            return Err(SnapshotFault::Unsupported { why }.into());
        }
        // The agent has written all data to the disk.
        disk.take(&plan.orders.run_dir.join(&plan.orders.machine.scratch))
            .map_err(|source| failed("keep the disk", source))?;
        return Ok(assemble(plan, None, disk));
    };
    let parts = SnapshotParts { memory: continues || is_shared, disk: continues, continues };
    let guest = if parts.memory {
        MemoryFile::of_guest(plan.orders.machine.memory_mib)
            .map_err(|source| failed("create a file for the memory", source))?
    } else {
        own.clone()
    };
    let copied_bytes = copied_bytes(plan, own, parts).map_err(|source| failed("look at the files", source))?;
    check_reserve(plan, copied_bytes.disk).await?;
    let devices = temporary(plan).map_err(|source| failed("create a file for the devices", source))?;
    let disk_copy = parts.disk.then(|| new_file(&disk.path())).transpose();
    let disk_copy = disk_copy.map_err(|source| failed("create a file for the disk", source))?;
    let files: Vec<BorrowedFd<'_>> =
        [Some(devices.as_fd()), parts.memory.then(|| guest.as_fd()), disk_copy.as_ref().map(|file| file.as_fd())]
            .into_iter()
            .flatten()
            .collect();
    match runner.command(&Command::Snapshot(parts), &files, copied_bytes.memory + copied_bytes.disk).await {
        Ok(stood_still) if continues => {
            let stood_still_us = u64::try_from(stood_still.as_micros()).unwrap_or(u64::MAX);
            tracing::info!(stood_still_us, "copied a running machine");
        }
        Ok(_stopped) => {}
        Err(fault @ CommandFault::Failed { .. }) => {
            return Err(SnapshotFault::Failed { source: fault.into() }.into());
        }
        Err(fault) => return Err(Fault::StandsStill(fault)),
    }
    match complete(plan, parts, guest, devices, &disk).await {
        Ok((guest, devices)) => {
            let memory = Some(SavedMemory { guest: GuestFile::single(guest), devices, pasts });
            Ok(assemble(plan, memory, disk))
        }
        Err(fault) if continues => Err(fault.into()),
        Err(fault) => {
            runner.command(&Command::Continue, &[], 0).await.map_err(Fault::StandsStill)?;
            Err(fault.into())
        }
    }
}

async fn complete(
    plan: &LaunchPlan,
    parts: SnapshotParts,
    guest: MemoryFile,
    devices: File,
    disk: &SavedDisk,
) -> Result<(MemoryFile, MemoryFile), SnapshotFault> {
    let devices = spawn_blocking(move || read_devices(&devices)).await.map_err(io::Error::other);
    let devices = devices.flatten().map_err(|source| failed("read the state of the devices", source))?;
    if !parts.disk {
        // The VMM has the file open, but its guest stands still.
        disk.take(&plan.orders.run_dir.join(&plan.orders.machine.scratch))
            .map_err(|source| failed("keep the disk", source))?;
    }
    Ok((guest, devices))
}

fn assemble(plan: &LaunchPlan, memory: Option<SavedMemory>, disk: SavedDisk) -> VmSnapshot {
    VmSnapshot {
        shape: plan.shape.clone(),
        memory,
        disk,
        image: plan.image.clone(),
        image_pool: plan.image_pool.clone(),
        origin: Arc::clone(&plan.origin),
    }
}

/// Checks whether the copies leave the space on the disk that other machines need.
async fn check_reserve(plan: &LaunchPlan, bytes: u64) -> Result<(), SnapshotFault> {
    let (reserve, folder) = (plan.reserve, plan.orders.run_dir.clone());
    let checked = spawn_blocking(move || reserve.check(&folder, bytes)).await;
    let checked = checked.map_err(|source| SnapshotFault::Failed { source: source.into() })?;
    checked.map_err(|source| SnapshotFault::Failed { source: source.into() })
}

/// The bytes that a snapshot copies.
#[derive(Clone, Copy)]
struct CopiedBytes {
    memory: u64,
    disk: u64,
}

fn copied_bytes(plan: &LaunchPlan, memory: &MemoryFile, parts: SnapshotParts) -> io::Result<CopiedBytes> {
    let size = u64::from(plan.orders.machine.memory_mib) << 20;
    let scratch = plan.orders.run_dir.join(&plan.orders.machine.scratch).metadata()?;
    Ok(CopiedBytes {
        // Of a shared file, QEMU may have copied all pages.
        memory: if parts.memory { size.max(memory.occupied_bytes()?) } else { 0 },
        disk: if parts.disk { scratch.blocks() * 512 } else { 0 },
    })
}

/// Creates a file without a name, for the runner.
fn temporary(plan: &LaunchPlan) -> io::Result<File> {
    let path = plan.orders.run_dir.join(DEVICES);
    let file = new_file(&path)?;
    fs::remove_file(path)?;
    Ok(file)
}

fn new_file(path: &std::path::Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}
