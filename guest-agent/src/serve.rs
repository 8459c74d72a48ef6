// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The agent's side of the call link: dials the host, sends the hello, applies the welcome, then runs one task per
//! call.

use std::{
    io, mem,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::{sync::mpsc, task::JoinSet, time::sleep};
use waggle_link::{Acceptor, FrameReader, FrameWriter, GreetFault, LinkFault, ReceiveFault, SendFault};
use waggle_protocol::{CALLS_MAX, Hello, Link, Origin, Ready, Welcome};

use crate::{
    calls::{self, Services},
    console::report,
    dial::Connector,
    guest::Guest,
    probe,
};

/// Maximum number of simultaneous calls, including answered calls that still clean up. The host allows half as many.
const RUNNING_MAX: usize = 2 * CALLS_MAX;

/// Delay before the agent dials again while it holds. A copy of the machine is welcomed within a few times this delay.
const REDIAL: Duration = Duration::from_millis(10);

/// The reason why [`serve`] stopped without a request from the host.
#[derive(Debug, thiserror::Error)]
pub enum ServeFault {
    /// The sandbox, `/tmp` or the agent's own program is unusable.
    #[error("failed to prepare the guest for calls")]
    Prepare { source: io::Error },
    /// The sandbox exited, so this machine can start no more commands.
    #[error("lost the sandbox")]
    SandboxExited,
    #[error("failed to connect to the host")]
    Connect { source: io::Error },
    /// The connector has no further stream.
    #[error("no further host will come")]
    NoHost,
    /// The host rejected the link or is gone.
    #[error("failed to greet the host")]
    Greet { source: GreetFault },
    #[error("failed to send the hello")]
    Hello { source: SendFault },
    /// The host did not answer the hello; `source` is `None` if the host closed the stream.
    #[error("failed to receive the host's welcome")]
    Welcome { source: Option<ReceiveFault> },
    /// The machine could not become the one of the welcome.
    #[error("failed to apply the host's welcome")]
    Apply { source: io::Error },
    #[error("failed to send that the agent is ready")]
    Ready { source: SendFault },
    #[error("lost the link to the host")]
    Link { source: LinkFault },
}

/// Serves the host's calls until the host requests a power-off or the link ends. Calls `ready` once the agent
/// has applied the host's welcome. Running calls end when this function returns or its future is dropped.
///
/// After [`Request::Hold`](waggle_protocol::Request::Hold), the end of the link is not the end: the agent dials again,
/// at whatever step the link was, until a host has welcomed it and made a call.
///
/// # Errors
/// [`ServeFault`] unless the host requested a power-off.
pub async fn serve<C: Connector>(mut connector: C, guest: Guest, ready: impl FnOnce()) -> Result<(), ServeFault> {
    let origin = guest.origin;
    let services = Arc::new(Services::start(guest).map_err(|source| ServeFault::Prepare { source })?);
    let mut ready = Some(ready);
    loop {
        let is_first = ready.is_some();
        let fault = match greet(&mut connector, origin, &services, is_first).await {
            Ok(link) => {
                if let Some(ready) = ready.take() {
                    ready();
                }
                match accept_calls(link, &services, is_first).await {
                    Ok(()) => return Ok(()),
                    Err(fault) => fault,
                }
            }
            Err(fault) => fault,
        };
        if !services.holds.load(Relaxed) || matches!(fault, ServeFault::SandboxExited | ServeFault::NoHost) {
            return Err(fault);
        }
        sleep(REDIAL).await;
    }
}

/// Begins a generation of the link, and exchanges hello and welcome with the host. Has no timeout: the host's boot
/// timeout ends a machine whose greeting takes too long, and an agent that holds waits for any time.
async fn greet<C: Connector>(
    connector: &mut C,
    origin: Origin,
    services: &Services,
    is_first: bool,
) -> Result<Acceptor, ServeFault> {
    let connected = connector.connect().await.map_err(|source| ServeFault::Connect { source })?;
    let (stream, past) = connected.ok_or(ServeFault::NoHost)?;
    let dialled = waggle_link::dial(stream, past, Link::Call).await;
    let mut records = dialled.map_err(|source| ServeFault::Greet { source })?;
    let hello = Hello { origin, build: build(), programs: probe::programs(&services.settings.search_path()) };
    FrameWriter::new(&mut records).send(&hello).await.map_err(|source| ServeFault::Hello { source })?;
    let welcome = FrameReader::new(&mut records).receive::<Welcome>().await;
    let welcome = welcome.map_err(|source| ServeFault::Welcome { source: Some(source) })?;
    let welcome = welcome.ok_or(ServeFault::Welcome { source: None })?;
    services.platform.apply(&welcome, is_first).await.map_err(|source| ServeFault::Apply { source })?;
    FrameWriter::new(&mut records).send(&Ready).await.map_err(|source| ServeFault::Ready { source })?;
    Ok(Acceptor::start(records, Link::Call))
}

async fn accept_calls(mut link: Acceptor, services: &Arc<Services>, is_first: bool) -> Result<(), ServeFault> {
    let mut running = JoinSet::new();
    if is_first {
        running.spawn(Arc::clone(services).warm_up());
    }
    let (power_off, mut asked) = mpsc::channel(1);
    let mut is_first_call = true;
    loop {
        tokio::select! {
            stream = link.accept() => {
                let stream = stream.map_err(|source| ServeFault::Link { source })?;
                // The host that welcomed the agent makes calls, so the end of this link is the end again.
                if mem::take(&mut is_first_call) {
                    services.holds.store(false, Relaxed);
                }
                let busy = running.len() >= RUNNING_MAX;
                running.spawn(calls::serve_call(stream, Arc::clone(services), busy, power_off.clone()));
            }
            Some(ended) = running.join_next() => {
                if let Err(fault) = ended {
                    report(&format!("the task of a call failed: {fault}"));
                }
            }
            Some(()) = asked.recv() => return Ok(()),
            () = services.platform.failed() => return Err(ServeFault::SandboxExited),
        }
    }
}

fn build() -> String {
    concat!("waggle-agent ", env!("CARGO_PKG_VERSION")).to_owned()
}
