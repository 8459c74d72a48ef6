// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The host's end of a machine's call link. Each call has its own stream, and a task sets the guest's clock regularly.
//!
//! The guest may be hostile and may have replaced the agent. So the host does not rely on the agent: it checks lengths
//! and counts against the limits of each call, makes text printable, and enforces its own timeout for each call.

#![expect(clippy::wildcard_enum_match_arm, reason = "each unexpected reply is the same fault")]

mod call;
mod fault;
mod page;
mod port;
mod timeouts;

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Semaphore,
    task::AbortHandle,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;
use waggle_link::{
    Dialled, FrameReader, FrameWriter, GreetFault, Opener, OpeningFault, Past, ReceiveFault, Records, SendFault,
    await_dial,
};
use waggle_protocol::{
    CALLS_MAX, Hello, LISTING_BYTES_MAX, Link, NAME_BYTES_MAX, Origin, Ready, Reply, Request, Seed, Welcome,
    handshake::SEED_BYTES, name::TEXT_BYTES_PER_BYTE_MAX, request,
};
use waggle_shared::printable;

pub use self::timeouts::Timeouts;
use self::{call::Call, fault::AgentFault, page::Page};
use crate::domain::{
    call_fault::CallFault,
    capabilities::{AgentOrigin, Capabilities},
    command::{Command, Executed, Loader, OutputStream, User},
    file::{FileContent, FileRange, LISTING_NAMES_BYTES_MAX, ListOptions, Listing, NAME_TEXT_BYTES_MAX, Writing},
    guest_path::GuestPath,
    machine::PortFuture,
};

// The protocol's limits of listings and names must equal the domain's limits.
const _: () = assert!(LISTING_BYTES_MAX == LISTING_NAMES_BYTES_MAX, "the listing limits must be equal");
const _: () = assert!(NAME_BYTES_MAX * TEXT_BYTES_PER_BYTE_MAX == NAME_TEXT_BYTES_MAX, "the name limits must be equal");

/// Maximum length of the agent's build string in bytes. A program's name and version are shorter.
const BUILD_BYTES_MAX: usize = 200;

/// Maximum size in bytes of a file in the guest that stores an output stream. The agent keeps 16 such files, which
/// leave space on the guest's disk.
const KEPT_OUTPUT_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A connection to the guest agent failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectFault {
    /// The agent did not dial.
    #[error("failed to wait for the guest agent")]
    Dial { source: OpeningFault },
    /// The handshake of host and agent failed.
    #[error("failed to greet the guest agent")]
    Greet { source: GreetFault },
    /// The agent's hello did not arrive.
    #[error("failed to read the guest agent's hello")]
    Hello { source: ReceiveFault },
    /// The agent closed the connection before its hello.
    #[error("the guest agent closed the connection before its hello")]
    Left,
    /// The hello, or the agent's answer to the welcome, timed out.
    #[error("the guest agent did not complete its greeting within {} s", within.as_secs_f32())]
    Silent { within: Duration },
    /// The hello is too long, or contains control characters.
    #[error("the guest agent's hello exceeds the limits of the protocol")]
    Excessive,
    /// The host's random number generator failed.
    #[error("failed to draw random bytes for the guest")]
    Seed { source: getrandom::Error },
    /// The welcome could not be sent.
    #[error("failed to welcome the guest agent")]
    Welcome { source: SendFault },
    /// The agent did not report that it had applied the welcome.
    #[error("failed to read the guest agent's answer to the welcome")]
    Ready { source: ReceiveFault },
    /// The agent closed the connection instead of applying the welcome.
    #[error("the guest agent could not apply the welcome")]
    Unready,
}

/// A connected agent. Dropping the client closes the link and stops the clock task.
#[derive(Debug)]
pub struct AgentClient {
    link: Opener,
    capabilities: Capabilities,
    /// One permit for each concurrent call; further calls wait for a permit.
    calls: Semaphore,
    timeouts: Timeouts,
    clock: AbortHandle,
    /// The number of killed background processes that the agent has last reported.
    background_memory_kills: Arc<AtomicU64>,
    /// Cancelled after too many consecutive `SetClock` requests without a valid reply.
    silent: CancellationToken,
}

/// Waits until the agent dials, greets it, exchanges the hello and the welcome, and starts the link. The
/// welcome makes the guest a machine of its own, with the host name `hostname`.
///
/// The caller must limit the time until the agent dials. `timeouts` begin then.
///
/// # Errors
/// [`ConnectFault`].
pub async fn connect<S>(stream: S, past: Past, hostname: &str, timeouts: Timeouts) -> Result<AgentClient, ConnectFault>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let within = timeouts.hello;
    let dialled = await_dial(stream, past).await.map_err(|source| ConnectFault::Dial { source })?;
    let (records, hello) =
        timeout(within, greet(dialled, hostname)).await.unwrap_or(Err(ConnectFault::Silent { within }))?;
    let link = Opener::start(records, Link::Call);
    let silent = CancellationToken::new();
    let background_memory_kills = Arc::default();
    let clock = keep_clock(link.clone(), timeouts, silent.clone(), Arc::clone(&background_memory_kills));
    let (clock, calls) = (tokio::spawn(clock).abort_handle(), Semaphore::new(CALLS_MAX));
    let capabilities = capabilities(hello);
    Ok(AgentClient { link, capabilities, calls, timeouts, clock, background_memory_kills, silent })
}

async fn greet<S>(dialled: Dialled<S>, hostname: &str) -> Result<(Records<S>, Hello), ConnectFault>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let greeted = waggle_link::answer(dialled, Link::Call).await;
    let mut records = greeted.map_err(|source| ConnectFault::Greet { source })?;
    let hello = FrameReader::new(&mut records).receive::<Hello>().await;
    let hello = hello.map_err(|source| ConnectFault::Hello { source })?.ok_or(ConnectFault::Left)?;
    if !hello.is_within_limits() {
        return Err(ConnectFault::Excessive);
    }
    let mut seed = [0; SEED_BYTES];
    getrandom::fill(&mut seed).map_err(|source| ConnectFault::Seed { source })?;
    let welcome = Welcome { unix_ns: unix_ns(), hostname: hostname.to_owned(), seed: Seed(seed) };
    FrameWriter::new(&mut records).send(&welcome).await.map_err(|source| ConnectFault::Welcome { source })?;
    let ready = FrameReader::new(&mut records).receive::<Ready>().await;
    let Ready = ready.map_err(|source| ConnectFault::Ready { source })?.ok_or(ConnectFault::Unready)?;
    Ok((records, hello))
}

impl AgentClient {
    /// Returns the capabilities that the agent reported in its hello.
    #[must_use]
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// See `Agent::background_memory_kills`.
    #[must_use]
    pub fn background_memory_kills(&self) -> u64 {
        self.background_memory_kills.load(Relaxed)
    }

    /// Runs a command; see `Agent::exec`.
    ///
    /// # Errors
    /// [`CallFault`].
    pub async fn exec(
        &self,
        command: Command,
        cancelled: PortFuture<'_, ()>,
        on_output: &mut (dyn FnMut(OutputStream, &[u8]) + Send),
    ) -> Result<Executed, CallFault> {
        let _permit = self.permit().await?;
        let script = command.script.as_ref();
        let request = Request::Exec(request::Exec {
            argv: command.argv,
            script: script.map(|script| request::Script {
                extension: script.extension.to_owned(),
                bytes: script.code.len() as u64,
                loader: script.loader.map(|loader| match loader {
                    Loader::Python => request::Loader::Python,
                    Loader::Node => request::Loader::Node,
                }),
            }),
            stdin_bytes: command.stdin.len() as u64,
            env: command.env,
            working_directory: command.working_directory.map(|folder| folder.as_str().to_owned()),
            user: match command.user {
                User::Sandbox => request::User::Sandbox,
                User::Root => request::User::Root,
            },
            timeout_ms: u64::try_from(command.timeout.as_millis()).unwrap_or(u64::MAX),
            limits: request::Limits {
                memory_bytes: command.limits.memory_bytes,
                pids: command.limits.pids,
                open_files: command.limits.open_files,
            },
            keep: request::Keep { above_bytes: command.keep_output_above_bytes, bytes_max: KEPT_OUTPUT_BYTES_MAX },
        });
        let code = script.map_or(&[][..], |script| &script.code);
        let within = command.timeout.saturating_add(self.timeouts.deadline_grace);
        let call = self.call(request, [code, &command.stdin], within);
        call.make(&self.link, cancelled, |reply| match reply {
            Reply::Stdout(bytes) => {
                on_output(OutputStream::Stdout, bytes);
                Ok(None)
            }
            Reply::Stderr(bytes) => {
                on_output(OutputStream::Stderr, bytes);
                Ok(None)
            }
            Reply::Exited(exited) => {
                self.background_memory_kills.fetch_max(exited.background_memory_kills, Relaxed);
                Ok(Some(call::executed(exited)))
            }
            other => Err(fault::unexpected(&other)),
        })
        .await
    }

    /// Writes a file; see `Agent::write_file`.
    ///
    /// # Errors
    /// [`CallFault`].
    pub async fn write_file(&self, path: &GuestPath, content: &[u8], how: Writing) -> Result<u64, CallFault> {
        let _permit = self.permit().await?;
        let path = path.as_str().to_owned();
        let request = Request::WriteFile { path, bytes: content.len() as u64, mode: how.mode, append: how.append };
        let call = self.call(request, [content, &[]], self.timeouts.file);
        call.make(&self.link, never(), |reply| match reply {
            Reply::Written { bytes } => Ok(Some(bytes)),
            other => Err(fault::unexpected(&other)),
        })
        .await
    }

    /// Reads a file; see `Agent::read_file`.
    ///
    /// # Errors
    /// [`CallFault`].
    pub async fn read_file(
        &self,
        path: &GuestPath,
        range: Option<FileRange>,
        bytes_max: u64,
    ) -> Result<FileContent, CallFault> {
        let _permit = self.permit().await?;
        let part = range.map(|range| (range.offset, range.limit));
        let request = Request::ReadFile { path: path.as_str().to_owned(), range: part, bytes_max };
        let most = range.map_or(bytes_max, |range| range.limit.min(bytes_max));
        let mut bytes = Vec::new();
        let call = self.call(request, [&[], &[]], self.timeouts.file);
        let file_size = call
            .make(&self.link, never(), |reply| match reply {
                Reply::Data(data) if (bytes.len() + data.len()) as u64 <= most => {
                    reserve(&mut bytes, data.len(), most);
                    bytes.extend_from_slice(data);
                    Ok(None)
                }
                Reply::Data(_) => Err(AgentFault::TooMuch { what: "bytes of a file", max: most }),
                Reply::FileEnd { size } => Ok(Some(size)),
                other => Err(fault::unexpected(&other)),
            })
            .await?;
        Ok(FileContent { bytes, file_size })
    }

    /// Lists a folder; see `Agent::list_files`.
    ///
    /// # Errors
    /// [`CallFault`].
    pub async fn list_files(&self, path: &GuestPath, options: &ListOptions) -> Result<Listing, CallFault> {
        let _permit = self.permit().await?;
        let mut page = Page::new(options);
        let request = Request::ListFiles {
            path: path.as_str().to_owned(),
            after: page.last().to_vec(),
            entries_max: options.entries_max,
            recursive: options.recursive,
        };
        let call = self.call(request, [&[], &[]], self.timeouts.file);
        let listing = call
            .make(&self.link, never(), |reply| match reply {
                Reply::Entries(entries) => page.add(entries).map(|()| None),
                Reply::ListEnd { total, total_is_minimum, too_deep, next } => {
                    page.check_total(total)?;
                    let (entries, next) = (Vec::new(), page.next(next)?);
                    Ok(Some(Listing { entries, total, total_is_minimum, too_deep, next }))
                }
                other => Err(fault::unexpected(&other)),
            })
            .await?;
        Ok(Listing { entries: page.into_entries(), ..listing })
    }

    /// Asks the agent to sync the disks and power off the machine. Waits a few seconds for the agent's confirmation.
    pub async fn power_off(&self) {
        let done = |reply: Reply<'_>| match reply {
            Reply::Done => Ok(Some(())),
            other => Err(fault::unexpected(&other)),
        };
        if let Err(fault) = control(&self.link, Request::PowerOff, self.timeouts, done).await {
            tracing::debug!(error = &fault as &dyn Error, "the agent did not confirm the power-off");
        }
    }

    /// Makes the agent dial again when its link ends, as in a copy of the machine, until a host has welcomed it and
    /// made a call.
    ///
    /// # Errors
    /// [`CallFault`].
    pub async fn hold(&self) -> Result<(), CallFault> {
        let done = |reply: Reply<'_>| match reply {
            Reply::Done => Ok(Some(())),
            other => Err(fault::unexpected(&other)),
        };
        self.call(Request::Hold, [&[], &[]], self.timeouts.hold).make(&self.link, never(), done).await
    }

    /// Waits until the link has ended or the agent no longer responds; returns the reason.
    pub async fn closed(&self) -> String {
        tokio::select! {
            ended = self.link.ended() => ended.to_string(),
            () = self.silent.cancelled() => "the agent no longer responds".to_owned(),
        }
    }

    fn call<'a>(&self, request: Request, body: [&'a [u8]; 2], within: Duration) -> Call<'a> {
        Call { request, body, within, cancel_within: self.timeouts.cancel }
    }

    async fn permit(&self) -> Result<tokio::sync::SemaphorePermit<'_>, CallFault> {
        let permit = self.calls.acquire().await;
        permit.map_err(|_closed| CallFault::Gone { reason: "the link accepts no more calls".to_owned() })
    }
}

impl Drop for AgentClient {
    fn drop(&mut self) {
        self.clock.abort();
    }
}

/// Sets the guest's clock at an interval. The replies also show whether the agent still responds.
async fn keep_clock(
    link: Opener,
    timeouts: Timeouts,
    silent: CancellationToken,
    background_memory_kills: Arc<AtomicU64>,
) {
    let mut ticks = interval(timeouts.clock_interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Skips the first, immediate tick, since the welcome has just set the clock.
    ticks.tick().await;
    let clock_set = |reply: Reply<'_>| match reply {
        Reply::ClockSet { background_memory_kills } => Ok(Some(background_memory_kills)),
        other => Err(fault::unexpected(&other)),
    };
    let mut unanswered = 0;
    while unanswered < timeouts.unanswered_max {
        ticks.tick().await;
        match control(&link, Request::SetClock { unix_ns: unix_ns() }, timeouts, clock_set).await {
            Ok(kills) => {
                background_memory_kills.fetch_max(kills, Relaxed);
                unanswered = 0;
            }
            // A refusal also shows that the agent responds.
            Err(CallFault::Refused { .. }) => unanswered = 0,
            Err(CallFault::Gone { .. }) => return,
            Err(CallFault::Protocol { .. }) => unanswered += 1,
        }
    }
    silent.cancel();
}

async fn control<T>(
    link: &Opener,
    request: Request,
    timeouts: Timeouts,
    on_reply: impl FnMut(Reply<'_>) -> Result<Option<T>, AgentFault>,
) -> Result<T, CallFault> {
    let call = Call { request, body: [&[], &[]], within: timeouts.control, cancel_within: timeouts.cancel };
    call.make(link, never(), on_reply).await
}

/// Reserves space for `more` further bytes. Doubles the capacity, up to `most` bytes.
fn reserve(bytes: &mut Vec<u8>, more: usize, most: u64) {
    let needed = bytes.len() + more;
    if needed > bytes.capacity() {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let wanted = bytes.capacity().saturating_mul(2).min(most).max(needed);
        bytes.reserve_exact(wanted - bytes.len());
    }
}

fn never() -> PortFuture<'static, ()> {
    Box::pin(std::future::pending())
}

fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn capabilities(hello: Hello) -> Capabilities {
    Capabilities {
        agent_origin: match hello.origin {
            Origin::Host => AgentOrigin::Host,
            Origin::Image => AgentOrigin::Image,
        },
        agent_build: printable::text(&hello.build, BUILD_BYTES_MAX),
        programs: hello.programs,
    }
}
