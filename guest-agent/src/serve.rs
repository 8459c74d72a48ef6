// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The agent's side of the call link: greet, say hello, then one task a call until the link ends.

use std::{io, sync::Arc};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
    task::JoinSet,
};
use waggle_link::{Acceptor, FrameReader, FrameWriter, GreetFault, LinkFault, ReceiveFault, SendFault};
use waggle_protocol::{CALLS_MAX, Hello, Link, Welcome};

use crate::{
    calls, clock,
    console::report,
    guest::{Guest, Served},
    probe,
};

/// Calls at a time, those included that have answered and still clean up. The host keeps to half of it.
const RUNNING_MAX: usize = 2 * CALLS_MAX;

/// Why the agent stopped serving before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum ServeFault {
    /// The room that commands live in is of no use.
    #[error("failed to enter the room")]
    Room {
        /// What the kernel said.
        source: io::Error,
    },
    /// The host refused the link, or is not there.
    #[error("failed to greet the host")]
    Greet {
        /// What came in the way.
        source: GreetFault,
    },
    /// The hello could not be sent.
    #[error("failed to say hello")]
    Hello {
        /// What came in the way.
        source: SendFault,
    },
    /// The host did not answer the hello.
    #[error("failed to hear the host's welcome")]
    Welcome {
        /// What came in the way; none if the host just left.
        source: Option<ReceiveFault>,
    },
    /// The link is gone.
    #[error("lost the link to the host")]
    Link {
        /// How it ended.
        source: LinkFault,
    },
}

/// Serves the host's calls on `stream` until the host asks to power off, or the link ends. `ready` runs once the host
/// has accepted the agent. Calls that run when this returns, or is dropped, are ended.
///
/// # Errors
/// [`ServeFault`] for anything but a power-off that was asked for.
pub async fn serve<S>(mut stream: S, guest: Guest, ready: impl FnOnce()) -> Result<(), ServeFault>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let served = Served::enter(guest).map_err(|source| ServeFault::Room { source })?;
    waggle_link::send_preamble(&mut stream, Link::Call).await.map_err(|source| ServeFault::Greet { source })?;
    let hello = Hello { origin: served.origin, build: build(), programs: probe::programs(&served) };
    FrameWriter::new(&mut stream).send(&hello).await.map_err(|source| ServeFault::Hello { source })?;
    let welcome = FrameReader::new(&mut stream).receive::<Welcome>().await;
    let welcome = welcome.map_err(|source| ServeFault::Welcome { source: Some(source) })?;
    let welcome = welcome.ok_or(ServeFault::Welcome { source: None })?;
    if served.room.is_some()
        && let Err(errno) = clock::set(welcome.unix_ns)
    {
        report(&format!("failed to set the clock: {errno}"));
    }
    ready();
    accept_calls(Acceptor::start(stream, Link::Call), Arc::new(served)).await
}

async fn accept_calls(mut link: Acceptor, served: Arc<Served>) -> Result<(), ServeFault> {
    let mut running = JoinSet::new();
    let (power_off, mut asked) = mpsc::channel(1);
    loop {
        tokio::select! {
            stream = link.accept() => {
                let stream = stream.map_err(|source| ServeFault::Link { source })?;
                let busy = running.len() >= RUNNING_MAX;
                running.spawn(calls::serve_call(stream, Arc::clone(&served), busy, power_off.clone()));
            }
            Some(ended) = running.join_next() => {
                if let Err(fault) = ended {
                    report(&format!("a call's task failed: {fault}"));
                }
            }
            Some(()) = asked.recv() => return Ok(()),
            // A machine in which nothing can be started is of no use to anyone.
            () = room_gone(&served) => return Err(ServeFault::Room { source: io::ErrorKind::BrokenPipe.into() }),
        }
    }
}

async fn room_gone(served: &Served) {
    match &served.room {
        Some(room) => room.gone().await,
        None => std::future::pending().await,
    }
}

fn build() -> String {
    concat!("waggle-agent ", env!("CARGO_PKG_VERSION")).to_owned()
}
