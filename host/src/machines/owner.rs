// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The task that owns one machine. It creates the machine's files, starts the runner, waits for the agent, and then
//! watches runner and agent. After the machine ends for any reason, the task removes the machine's files.
//!
//! ```text
//!  disks ─▶ boot ─▶ running ─▶ removed        an error or a stop leads from any state to removed
//! ```

use std::{
    error::Error,
    io,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    task::spawn_blocking,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use waggle_protocol::{CALL_PORT, CONSOLE_PREFIX, EGRESS_PORT};

use super::{
    console::ConsoleTail,
    egress_link::EgressLink,
    initramfs::InitramfsFault,
    launch_plan::{InitialRoot, LaunchPlan, Start},
    link_source::LinkSource,
    run_dirs,
    runner_process::{LastOutput, RunnerProcess, SpawnFault},
    snapshot::Pasts,
    snapshotting::{self, SnapshotRequest, Taken},
};
use crate::{
    agent::{self, AgentClient, ConnectFault, Timeouts},
    domain::{machine::StartFault, principal::Principal, stage::Stage},
    log_limit::{self, Kind},
    machines::disks::{DiskFault, Disks},
};

/// Timeout for the agent to shut its guest down. One second is enough, because the guest's disk is deleted anyway.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);
/// Timeout for the runner's report after the link broke. The report explains more than the broken link.
const REPORT_MAX: Duration = Duration::from_millis(300);
/// Timeout for the machine to end by itself after a kernel panic. Until then, the panic's call trace is captured.
const PANIC_TRACE_MAX: Duration = Duration::from_millis(300);

/// A message from the owner during a start.
#[derive(Debug)]
pub(super) enum Progress {
    /// The next stage began.
    Stage(Stage),
    /// The agent is ready for calls.
    Ready(Arc<AgentClient>, Arc<Mutex<ConsoleTail>>, mpsc::Sender<SnapshotRequest>),
    /// The start failed, and the machine's processes and files have been removed.
    Failed(StartFault),
}

/// The reason for a machine's end.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum End {
    /// The machine was stopped on request, or its start failed.
    Stopped,
    /// The machine ended without a request, for this reason.
    Gone(String),
}

#[derive(Debug, thiserror::Error)]
pub(super) enum BootFault {
    #[error("the agent did not connect within {} s", after.as_secs_f32())]
    TimedOut { after: Duration },
    #[error("the machine ended before its agent connected: {reason}")]
    Ended { reason: String },
    #[error("the guest's kernel panicked")]
    Panicked,
    #[error("failed to listen for the agent's connection")]
    Listen { source: io::Error },
    #[error("failed to start the machine")]
    Spawn { source: SpawnFault },
    #[error("failed to complete the handshake with the guest agent")]
    Connect { source: ConnectFault },
    #[error("the start was cancelled")]
    Cancelled,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum FileFault {
    #[error("failed to create the scratch disk")]
    Scratch { source: DiskFault },
    #[error("failed to create the initial root")]
    Initramfs { source: InitramfsFault },
    #[error("failed to encode the boot configuration")]
    Encode { source: postcard::Error },
    #[error("failed to write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// Runs one machine until the machine ends or `stop` is cancelled. Sets `end` after the machine's files are removed.
pub(super) async fn own(
    plan: LaunchPlan,
    progress: mpsc::Sender<Progress>,
    stop: CancellationToken,
    end: watch::Sender<Option<End>>,
) {
    let run_dir = plan.orders.run_dir.clone();
    let (image, owner) = (plan.image.clone(), plan.owner.clone());
    let (outcome, last_output) = run(plan, &progress, &stop).await;
    drop(image);
    remove(run_dir).await;
    let outcome = match (outcome, last_output) {
        (Ok(End::Gone(reason)), output) => {
            let reason = if output.as_ref().is_some_and(|output| output.panicked) {
                "the guest's kernel panicked".to_owned()
            } else {
                reason
            };
            log_end(&owner, &reason, output.as_ref());
            End::Gone(reason)
        }
        (Ok(End::Stopped), _) => End::Stopped,
        (Err((stage, source)), output) => {
            if !stop.is_cancelled() {
                log_end(&owner, &source.to_string(), output.as_ref());
            }
            let console = output.map(|output| output.console).unwrap_or_default();
            // After a cancelled start, the receiver may have been dropped.
            let _ = progress.send(Progress::Failed(super::start_fault(stage, console, source))).await;
            End::Stopped
        }
    };
    end.send_replace(Some(outcome));
}

type Fault = (Stage, Box<dyn Error + Send + Sync>);

async fn run(
    mut plan: LaunchPlan,
    progress: &mpsc::Sender<Progress>,
    stop: &CancellationToken,
) -> (Result<End, Fault>, Option<LastOutput>) {
    let _ = progress.send(Progress::Stage(Stage::Disks)).await;
    if let Err(fault) = make_files(&plan).await {
        return (Err((Stage::Disks, fault.into())), None);
    }
    plan.start.release_disk();
    let boot_fault = |fault: BootFault| Err((Stage::Boot, fault.into()));
    // Cancellation is not checked before the files are complete: the blocking task that creates them cannot be
    // cancelled, and would continue to write into a removed folder.
    if stop.is_cancelled() {
        return (boot_fault(BootFault::Cancelled), None);
    }
    let _ = progress.send(Progress::Stage(Stage::Boot)).await;
    // The sockets must listen before the runner starts, because the guest may connect as soon as it runs.
    let (calls, _egress) = match listen_for_links(&mut plan, stop) {
        Ok(listening) => listening,
        Err(source) => return (boot_fault(BootFault::Listen { source }), None),
    };
    let mut runner = match RunnerProcess::start(&plan.runner, &plan.orders, &plan.start.files(), plan.shows_log).await {
        Ok(runner) => runner,
        Err(source) => return (boot_fault(BootFault::Spawn { source }), None),
    };
    let outcome = match boot(&mut runner, connect(calls, &plan), plan.boot_timeout, stop).await {
        Ok(agent) => {
            let agent = Arc::new(agent);
            let (snapshots, mut requests) = mpsc::channel(1);
            let _ = progress.send(Progress::Ready(Arc::clone(&agent), runner.console(), snapshots)).await;
            Ok(watch_over(&plan, &mut runner, &agent, &mut requests, stop).await)
        }
        Err(fault) => Err(fault),
    };
    let output = runner.stop().await;
    let outcome = outcome.map(|(end, taken)| {
        if let Some(taken) = taken {
            taken.deliver();
        }
        end
    });
    let outcome = match outcome {
        // A panic also ends the machine, and the end may be noticed before the panic.
        Err(BootFault::Ended { .. }) if output.panicked => boot_fault(BootFault::Panicked),
        Err(BootFault::Ended { reason }) => {
            boot_fault(BootFault::Ended { reason: with_agent_message(&reason, &output.console) })
        }
        Ok(end) => Ok(end),
        Err(fault) => boot_fault(fault),
    };
    (outcome, Some(output))
}

pub(super) async fn make_files(plan: &LaunchPlan) -> Result<(), FileFault> {
    let machine = &plan.orders.machine;
    let run_dir = &plan.orders.run_dir;
    let scratch = run_dir.join(&machine.scratch);
    let made = match plan.start.disk() {
        Some(snapshot) => Disks::copy_of(&snapshot.disk.path(), &scratch).await,
        None => plan.disks.scratch(&scratch, plan.disk_mib).await,
    };
    made.map_err(|source| FileFault::Scratch { source })?;
    let Start::Boot { root, .. } = &plan.start else { return Ok(()) };
    let (name, content) = match root {
        InitialRoot::Initramfs { file, shared } => {
            let initramfs = shared.for_machine(&plan.boot);
            (file, initramfs.map_err(|source| FileFault::Initramfs { source })?)
        }
        InitialRoot::FromRunner { boot } => (boot, plan.boot.encode().map_err(|source| FileFault::Encode { source })?),
    };
    let path = run_dir.join(name);
    tokio::fs::write(&path, content).await.map_err(|source| FileFault::Write { path, source })
}

/// Listens for the agent's call link, and serves the machine's network if the machine has one.
fn listen_for_links(plan: &mut LaunchPlan, stop: &CancellationToken) -> io::Result<(LinkSource, Option<EgressLink>)> {
    let listen = |port, past| LinkSource::listen(&plan.orders.run_dir, port, plan.boot.transport, past);
    let Pasts { calls, egress } = plan.start.pasts();
    let calls = listen(CALL_PORT, calls)?;
    let egress = match plan.egress.take() {
        Some(guest) => Some(EgressLink::start(listen(EGRESS_PORT, egress)?, guest, stop.clone())),
        None => None,
    };
    Ok((calls, egress))
}

// The socket accepts no more connections when the boot ends, because they would not come from the agent.
async fn boot(
    runner: &mut RunnerProcess,
    connection: impl Future<Output = Result<AgentClient, BootFault>>,
    within: Duration,
    stop: &CancellationToken,
) -> Result<AgentClient, BootFault> {
    let connection = timeout(within, connection);
    let panicked = runner.panicked();
    tokio::select! {
        () = stop.cancelled() => Err(BootFault::Cancelled),
        connected = connection => connected.unwrap_or(Err(BootFault::TimedOut { after: within })),
        () = panicked.cancelled() => {
            let _ = timeout(PANIC_TRACE_MAX, runner.ended()).await;
            Err(BootFault::Panicked)
        }
        reason = runner.ended() => Err(BootFault::Ended { reason }),
    }
}

// If the image contains an unusable agent, that agent connects first and the host's agent connects next.
async fn connect(mut calls: LinkSource, plan: &LaunchPlan) -> Result<AgentClient, BootFault> {
    let first = match greet(&mut calls, &plan.hostname).await {
        Err(BootFault::Connect { source }) => source,
        outcome => return outcome,
    };
    if let Some(left_out) = log_limit::admitted_of(&plan.owner, Kind::Agent) {
        let error = &first as &dyn Error;
        tracing::warn!(error, left_out, "the first agent to connect is unusable; waiting for another");
    }
    greet(&mut calls, &plan.hostname).await
}

async fn greet(calls: &mut LinkSource, hostname: &str) -> Result<AgentClient, BootFault> {
    let (stream, past) = calls.next().await.map_err(|source| BootFault::Listen { source })?;
    match agent::connect(stream, past, hostname, Timeouts::default()).await {
        // The machine has ended, and the runner reports why.
        Err(_) if calls.has_ended() => std::future::pending().await,
        connected => connected.map_err(|source| BootFault::Connect { source }),
    }
}

/// Waits for the end of the machine, and takes snapshots meanwhile. If the machine ends with a snapshot, returns it.
async fn watch_over(
    plan: &LaunchPlan,
    runner: &mut RunnerProcess,
    agent: &AgentClient,
    requests: &mut mpsc::Receiver<SnapshotRequest>,
    stop: &CancellationToken,
) -> (End, Option<Taken>) {
    loop {
        let end = tokio::select! {
            () = stop.cancelled() => {
                let _ = timeout(SHUTDOWN_GRACE, agent.power_off()).await;
                End::Stopped
            }
            Some(request) = requests.recv() => {
                match snapshotting::answer(request, plan, runner, agent, stop).await {
                    Ok(None) => continue,
                    Ok(Some(taken)) => return (End::Stopped, Some(taken)),
                    Err(reason) => End::Gone(reason),
                }
            }
            reason = runner.ended() => End::Gone(reason),
            reason = agent.closed() => {
                let report = timeout(REPORT_MAX, runner.ended()).await;
                End::Gone(report.unwrap_or_else(|_| format!("the agent's link ended: {reason}")))
            }
        };
        return (end, None);
    }
}

// The runner has usually removed the folder already, but a killed runner has not.
pub(super) async fn remove(run_dir: PathBuf) {
    if let Err(fault) = spawn_blocking(move || run_dirs::clear(&run_dir)).await {
        tracing::error!(error = &fault as &dyn Error, "failed to remove a run folder");
    }
}

/// Appends the agent's last console message: the guest's first process prints there why it failed.
fn with_agent_message(reason: &str, console: &[String]) -> String {
    agent_message(console).map_or_else(|| reason.to_owned(), |message| format!("{reason}; the agent said: {message}"))
}

/// Returns the agent's last message on the console.
pub(super) fn agent_message(console: &[String]) -> Option<&str> {
    console.iter().rev().find_map(|line| line.split_once(CONSOLE_PREFIX)).map(|(_, message)| message)
}

/// Logs the end of a machine with its last output, which may be 10 KB, within the limit of the owner's lines.
fn log_end(owner: &Principal, reason: &str, output: Option<&LastOutput>) {
    let Some(left_out) = log_limit::admitted_of(owner, Kind::Machine) else { return };
    let (console, programs) =
        output.map(|output| (output.console.join("\n"), output.programs.join("\n"))).unwrap_or_default();
    tracing::error!(reason, console, programs, left_out, "a machine failed");
}
