// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Serves one stream of the call link: reads the request, runs the call, ends the stream.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use tokio::sync::{mpsc, watch};
use waggle_link::{SendFault, Stream};
use waggle_protocol::{FRAME_BYTES_MAX, FaultKind, Reply, Request, TEXT_BYTES_MAX};

use crate::{
    command_settings::CommandSettings,
    exec::{CodeFolder, Executor},
    fault::fault,
    files::Workers,
    guest::Guest,
    platform::Platform,
    streams::{Writer, halves},
    temporary::TemporaryFolder,
    warm_up,
};

/// The services that run the calls.
#[derive(Debug)]
pub(crate) struct Services {
    pub(crate) platform: Arc<Platform>,
    pub(crate) settings: Arc<CommandSettings>,
    executor: Executor,
    workers: Workers,
    /// Whether the agent dials again after the end of the link.
    pub(crate) holds: AtomicBool,
    /// True once the agent must not run programs of its own.
    holding: watch::Sender<bool>,
}

impl Services {
    pub(crate) fn start(guest: Guest) -> io::Result<Self> {
        let platform = Arc::new(Platform::start(guest.mode)?);
        let temporary = TemporaryFolder::open(&guest.root, "tmp", Arc::clone(&platform))?;
        let code = CodeFolder::create(&guest.root, Arc::clone(&platform))?;
        let workers = Workers::new(guest.root.clone(), Arc::clone(&platform))?;
        let (root, env, working_directory) = (guest.root, guest.env, guest.working_directory);
        let user = platform.sandbox_user();
        let settings = Arc::new(CommandSettings::new(root, env, working_directory, user));
        let executor = Executor::new(Arc::clone(&platform), Arc::clone(&settings), temporary, code);
        Ok(Self {
            platform,
            settings,
            executor,
            workers,
            holds: AtomicBool::new(false),
            holding: watch::Sender::default(),
        })
    }

    /// Prepares the image's programs for the first calls, until the agent holds.
    pub(crate) async fn warm_up(self: Arc<Self>) {
        let mut holding = self.holding.subscribe();
        tokio::select! {
            () = warm_up::fill_python_cache(&self.platform, &self.settings, self.executor.groups()) => {}
            _ = holding.wait_for(|holds| *holds) => {}
        }
    }
}

/// Serves one call. If the agent is `busy`, rejects every request except `SetClock`, `Hold` and `PowerOff`. If the
/// stream breaks, the call ends without an answer.
pub(crate) async fn serve_call(stream: Stream, services: Arc<Services>, busy: bool, power_off: mpsc::Sender<()>) {
    let (mut reader, mut writer) = halves(stream, FRAME_BYTES_MAX);
    let request = match reader.receive::<Request>().await {
        Ok(Some(request)) => request,
        Ok(None) => return,
        Err(source) => {
            return end(&mut writer, Reply::Fault(fault(FaultKind::BadRequest, source.to_string()))).await;
        }
    };
    if busy && !matches!(request, Request::SetClock { .. } | Request::Hold | Request::PowerOff) {
        let message = "too many calls are running in this machine; wait for one to end";
        return end(&mut writer, Reply::Fault(fault(FaultKind::Busy, message))).await;
    }
    match request {
        Request::Exec(request) => {
            if let Some(last) = services.executor.run(&request, &mut reader, &mut writer).await {
                end(&mut writer, last).await;
            }
        }
        Request::WriteFile { .. } | Request::ReadFile { .. } | Request::ListFiles { .. } => {
            if let Some(fault) = services.workers.relay(&request, &mut reader, &mut writer).await {
                end(&mut writer, Reply::Fault(fault)).await;
            }
        }
        Request::SetClock { unix_ns } => {
            let failed = |errno| Reply::Fault(fault(FaultKind::Other, format!("failed to set the clock: {errno}")));
            let set = services.platform.correct_clock(unix_ns);
            let background_memory_kills = services.executor.background_memory_kills();
            let reply = set.map_or_else(failed, |()| Reply::ClockSet { background_memory_kills });
            end(&mut writer, reply).await;
        }
        Request::Hold => {
            services.holding.send_replace(true);
            services.platform.sync().await;
            services.holds.store(true, Relaxed);
            end(&mut writer, Reply::Done).await;
        }
        Request::PowerOff => {
            services.platform.sync().await;
            end(&mut writer, Reply::Done).await;
            // If the queue is full, another call has requested the power-off already.
            let _asked = power_off.try_send(());
        }
    }
}

/// Sends the last reply and ends the stream.
async fn end(writer: &mut Writer, mut last: Reply<'_>) {
    if let Reply::Fault(fault) = &mut last {
        // The message may contain a path or a program's name, and both may exceed the limit.
        fault.message.truncate(fault.message.floor_char_boundary(TEXT_BYTES_MAX));
    }
    let ended: Result<(), SendFault> = async {
        writer.send(&last).await?;
        writer.finish().await
    }
    .await;
    // An error means that the host is gone, so no reader is left for the reply.
    drop(ended);
}
