// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The task that owns one machine: makes its files, starts its runner, waits for its agent, watches both, and clears
//! everything away at the end, whichever way the end comes.
//!
//! ```text
//!  disks ─▶ boot ─▶ running ─▶ cleared        a fault, or the order to stop, leads from any of them to cleared
//! ```

use std::{
    error::Error,
    ffi::OsString,
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    net::{UnixListener, UnixStream},
    sync::{mpsc, watch},
    task::spawn_blocking,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use waggle_protocol::{CALL_PORT, CONSOLE_PREFIX, EGRESS_PORT, boot::BootConfig};

use super::{
    console::ConsoleTail,
    egress_link::EgressLink,
    file_names::LINK_SOCKETS,
    initramfs::{InitramfsFault, SharedRoot},
    run_dirs,
    runner_messages::Orders,
    runner_process::{LastWords, RunnerProcess, SpawnFault},
};
use crate::{
    agent::{self, AgentClient, ConnectFault, Patience},
    domain::ports::{Stage, StartFault},
    images::cache::Lease,
    machines::disks::{DiskFault, Disks},
    network::Guest,
};

/// How long the agent may take to stop its guest in order; its disk is thrown away, so nothing is lost by less.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);
/// When the link breaks, how long the machine's own end is waited for, since it says more.
const BETTER_REASON_MAX: Duration = Duration::from_millis(300);
/// From the first words of a kernel's panic to the machine's end, so that the trace that follows them is seen.
const PANIC_TRACE_MAX: Duration = Duration::from_millis(300);

/// What a start tells whoever waits for it.
#[derive(Debug)]
pub(super) enum Progress {
    /// The next stage begins.
    Stage(Stage),
    /// The agent serves, and the console says what it says.
    Ready(Arc<AgentClient>, Arc<Mutex<ConsoleTail>>),
    /// It came to nothing, and everything has been cleared away.
    Failed(StartFault),
}

/// How a machine came to its end.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum End {
    /// It was told to stop.
    Stopped,
    /// By itself, for this reason.
    Gone(String),
}

/// A machine did not boot.
#[derive(Debug, thiserror::Error)]
enum BootFault {
    #[error("the agent did not call within {} s", after.as_secs_f32())]
    TimedOut { after: Duration },
    #[error("the machine ended before its agent called: {reason}")]
    Ended { reason: String },
    #[error("the guest's kernel panicked")]
    Panicked,
    #[error("failed to listen for the agent's call")]
    Listen { source: io::Error },
    #[error("failed to start the machine")]
    Spawn { source: SpawnFault },
    #[error("failed to agree with the guest agent")]
    Connect { source: ConnectFault },
    #[error("the start was given up")]
    GivenUp,
}

/// A machine's files could not be made.
#[derive(Debug, thiserror::Error)]
enum FileFault {
    #[error("failed to make the scratch disk")]
    Scratch { source: DiskFault },
    #[error("failed to make the initial root")]
    Initramfs { source: InitramfsFault },
    #[error("failed to encode the boot configuration")]
    Encode { source: postcard::Error },
    #[error("failed to write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// Everything that one machine is made from.
#[derive(Debug)]
pub(super) struct Recipe {
    /// This binary.
    pub(super) runner: OsString,
    /// What the runner is told; the files that it names in the run folder are made here.
    pub(super) orders: Orders,
    /// What the guest is told.
    pub(super) boot: BootConfig,
    /// Its network, if it has one.
    pub(super) egress: Option<Guest>,
    /// Whether what its programs print goes to the log as it comes, not only when the machine fails.
    pub(super) shows_log: bool,
    /// Size of the scratch disk.
    pub(super) disk_mib: u32,
    /// From the start of the runner to the agent's hello.
    pub(super) boot_timeout: Duration,
    /// Where the agent comes from.
    pub(super) first_root: FirstRoot,
    /// Makes the scratch disk.
    pub(super) disks: Arc<Disks>,
    /// Keeps the image where it is until the machine is gone.
    pub(super) image: Arc<Lease>,
}

/// The root in which the guest's first process starts.
#[derive(Debug)]
pub(super) enum FirstRoot {
    /// A file, of which all machines share a part.
    Initramfs { file: &'static str, shared: Arc<SharedRoot> },
    /// Nothing but the boot configuration is written, and the runner makes the rest.
    MadeByTheRunner { boot: &'static str },
}

/// Runs one machine to its end. `stop` is the order to end; `end` is set when everything has been cleared away.
pub(super) async fn own(
    recipe: Recipe,
    progress: mpsc::Sender<Progress>,
    stop: CancellationToken,
    end: watch::Sender<Option<End>>,
) {
    let run_dir = recipe.orders.run_dir.clone();
    let image = Arc::clone(&recipe.image);
    let (outcome, last_words) = live(recipe, &progress, &stop).await;
    drop(image);
    clear(run_dir).await;
    let outcome = match (outcome, last_words) {
        (Ok(End::Gone(reason)), words) => {
            let reason = if words.as_ref().is_some_and(|words| words.panicked) {
                "the guest's kernel panicked".to_owned()
            } else {
                reason
            };
            log_end(&reason, words.as_ref());
            End::Gone(reason)
        }
        (Ok(End::Stopped), _) => End::Stopped,
        (Err((stage, source)), words) => {
            if !stop.is_cancelled() {
                log_end(&source.to_string(), words.as_ref());
            }
            let console = words.map(|words| words.console).unwrap_or_default();
            // Nobody waits for a start that was given up.
            let _ = progress.send(Progress::Failed(StartFault { stage, console, source })).await;
            End::Stopped
        }
    };
    end.send_replace(Some(outcome));
}

type Fault = (Stage, Box<dyn Error + Send + Sync>);

async fn live(
    mut recipe: Recipe,
    progress: &mpsc::Sender<Progress>,
    stop: &CancellationToken,
) -> (Result<End, Fault>, Option<LastWords>) {
    let _ = progress.send(Progress::Stage(Stage::Disks)).await;
    if let Err(fault) = make_files(&recipe).await {
        return (Err((Stage::Disks, fault.into())), None);
    }
    let boot_fault = |fault: BootFault| Err((Stage::Boot, fault.into()));
    // Not while the files are made: what makes them goes on by itself, and would do so in a folder that is cleared
    // away.
    if stop.is_cancelled() {
        return (boot_fault(BootFault::GivenUp), None);
    }
    let _ = progress.send(Progress::Stage(Stage::Boot)).await;
    // Before the runner: the guest may call as soon as it runs.
    let (listener, _egress) = match listen_to(&mut recipe) {
        Ok(listening) => listening,
        Err(source) => return (boot_fault(BootFault::Listen { source }), None),
    };
    let mut runner = match RunnerProcess::start(&recipe.runner, &recipe.orders, recipe.shows_log).await {
        Ok(runner) => runner,
        Err(source) => return (boot_fault(BootFault::Spawn { source }), None),
    };
    let outcome = match boot(&mut runner, listener, recipe.boot_timeout, stop).await {
        Ok(agent) => {
            let agent = Arc::new(agent);
            let _ = progress.send(Progress::Ready(Arc::clone(&agent), runner.console())).await;
            Ok(watch_over(&mut runner, &agent, stop).await)
        }
        Err(fault) => Err(fault),
    };
    let words = runner.stop().await;
    let outcome = match outcome {
        // A panic ends the machine, and which of the two is noticed first is chance.
        Err(BootFault::Ended { .. }) if words.panicked => boot_fault(BootFault::Panicked),
        Err(BootFault::Ended { reason }) => {
            boot_fault(BootFault::Ended { reason: with_agents_word(&reason, &words.console) })
        }
        Ok(end) => Ok(end),
        Err(fault) => boot_fault(fault),
    };
    (outcome, Some(words))
}

async fn make_files(recipe: &Recipe) -> Result<(), FileFault> {
    let machine = &recipe.orders.machine;
    let run_dir = &recipe.orders.run_dir;
    let scratch = run_dir.join(&machine.scratch);
    recipe.disks.scratch(&scratch, recipe.disk_mib).await.map_err(|source| FileFault::Scratch { source })?;
    let (name, content) = match &recipe.first_root {
        FirstRoot::Initramfs { file, shared } => {
            let initramfs = shared.for_machine(recipe.boot.clone());
            (file, initramfs.map_err(|source| FileFault::Initramfs { source })?)
        }
        FirstRoot::MadeByTheRunner { boot } => {
            (boot, recipe.boot.encode().map_err(|source| FileFault::Encode { source })?)
        }
    };
    let path = run_dir.join(name);
    tokio::fs::write(&path, content).await.map_err(|source| FileFault::Write { path, source })
}

// The path of a Unix socket ends at 107 bytes; by way of the open folder it is short wherever the folder is.
fn listen(run_dir: &Path, port: u32) -> io::Result<UnixListener> {
    let folder = std::fs::File::open(run_dir)?;
    UnixListener::bind(format!("/proc/self/fd/{}/{LINK_SOCKETS}_{port}", folder.as_raw_fd()))
}

/// Waits for the agent's call, and serves the machine's network if it has one.
fn listen_to(recipe: &mut Recipe) -> io::Result<(UnixListener, Option<EgressLink>)> {
    let run_dir = &recipe.orders.run_dir;
    let calls = listen(run_dir, CALL_PORT)?;
    let egress = match recipe.egress.take() {
        Some(guest) => Some(EgressLink::start(listen(run_dir, EGRESS_PORT)?, guest)),
        None => None,
    };
    Ok((calls, egress))
}

// The listener ends with the boot: whoever dials after that in the guest is not the agent.
async fn boot(
    runner: &mut RunnerProcess,
    listener: UnixListener,
    within: Duration,
    stop: &CancellationToken,
) -> Result<AgentClient, BootFault> {
    let call = timeout(within, connect(listener));
    let panicked = runner.panicked();
    tokio::select! {
        () = stop.cancelled() => Err(BootFault::GivenUp),
        called = call => called.unwrap_or(Err(BootFault::TimedOut { after: within })),
        () = panicked.cancelled() => {
            let _ = timeout(PANIC_TRACE_MAX, runner.ended()).await;
            Err(BootFault::Panicked)
        }
        reason = runner.ended() => Err(BootFault::Ended { reason }),
    }
}

// An agent of the image's that is of no use may have dialled before it was given up for the host's.
async fn connect(listener: UnixListener) -> Result<AgentClient, BootFault> {
    let first = match greet(&listener).await {
        Err(BootFault::Connect { source }) => source,
        outcome => return outcome,
    };
    tracing::warn!(error = &first as &dyn Error, "who called first was no agent; another call is waited for");
    greet(&listener).await
}

async fn greet(listener: &UnixListener) -> Result<AgentClient, BootFault> {
    let (stream, _): (UnixStream, _) = listener.accept().await.map_err(|source| BootFault::Listen { source })?;
    agent::connect(stream, Patience::default()).await.map_err(|source| BootFault::Connect { source })
}

async fn watch_over(runner: &mut RunnerProcess, agent: &AgentClient, stop: &CancellationToken) -> End {
    tokio::select! {
        () = stop.cancelled() => {
            let _ = timeout(SHUTDOWN_GRACE, agent.power_off()).await;
            End::Stopped
        }
        reason = runner.ended() => End::Gone(reason),
        reason = agent.closed() => {
            let better = timeout(BETTER_REASON_MAX, runner.ended()).await;
            End::Gone(better.unwrap_or_else(|_| format!("its agent's link ended: {reason}")))
        }
    }
}

// The runner has done this unless it was killed.
async fn clear(run_dir: PathBuf) {
    if let Err(fault) = spawn_blocking(move || run_dirs::clear(&run_dir)).await {
        tracing::error!(error = &fault as &dyn Error, "left a run folder behind");
    }
}

/// The reason, and what the agent said last on the console: the first process of a guest says there why it gives up.
fn with_agents_word(reason: &str, console: &[String]) -> String {
    let word = console.iter().rev().find_map(|line| line.split_once(CONSOLE_PREFIX));
    word.map_or_else(|| reason.to_owned(), |(_, word)| format!("{reason}; its agent said: {word}"))
}

fn log_end(reason: &str, words: Option<&LastWords>) {
    let (console, programs) =
        words.map(|words| (words.console.join("\n"), words.programs.join("\n"))).unwrap_or_default();
    tracing::error!(reason, console, programs, "a machine failed");
}
