// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Takes connections, up to so many, and ends those that send no request or read no answer.

use std::{io::Write as _, net::Shutdown, pin::pin, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::{
    refusal::no_room,
    stall::{STALL, Unstalled},
};

/// From the begin of a connection, or the end of an answer, to the end of the next request's head. Clients that keep a
/// connection for later keep it for less.
const HEAD_TIME: Duration = Duration::from_secs(60);

/// What is accepted when the process has no descriptor left is accepted again after this.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Serves until it is told to stop, and then until the last connection is done.
pub(super) async fn serve(listener: TcpListener, router: Router, connections_max: usize, stop: CancellationToken) {
    let room = Arc::new(Semaphore::new(connections_max));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => match Arc::clone(&room).try_acquire_owned() {
                    Ok(place) => {
                        connections.spawn(connection(stream, router.clone(), stop.clone(), place));
                    }
                    Err(_) => turn_away(stream),
                },
                Err(fault) => {
                    tracing::warn!(%fault, "failed to accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = connections.join_next() => note(ended),
            () = stop.cancelled() => break,
        }
    }
    drop(listener);
    while let Some(ended) = connections.join_next().await {
        note(ended);
    }
}

async fn connection(stream: TcpStream, router: Router, stop: CancellationToken, _place: OwnedSemaphorePermit) {
    // Without this, every event of a stream waits for the acknowledgement of the one before it.
    if let Err(fault) = stream.set_nodelay(true) {
        tracing::debug!(%fault, "failed to set TCP_NODELAY");
    }
    let service = TowerToHyperService::new(router);
    let io = TokioIo::new(Unstalled::new(stream, STALL));
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME);
    let mut served = pin!(builder.serve_connection(io, service));
    let outcome = tokio::select! {
        outcome = served.as_mut() => outcome,
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(fault) = outcome {
        tracing::debug!(%fault, "a connection ended badly");
    }
}

/// Says that there is no room, without waiting for anything.
fn turn_away(stream: TcpStream) {
    tracing::debug!("a connection was turned away");
    if let Ok(mut stream) = stream.into_std() {
        let _ = stream.write(no_room().as_bytes());
        let _ = stream.shutdown(Shutdown::Write);
    }
}

fn note(ended: Result<(), tokio::task::JoinError>) {
    if let Err(fault) = ended {
        tracing::error!(%fault, "the task of a connection ended badly");
    }
}
