// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Accepts connections up to a limit, and closes connections that send no request or do not read the response.

use std::{error::Error, io::Write as _, net::Shutdown, pin::pin, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustix::net::sockopt;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::{
    refusal::too_many_connections,
    stall::{STALL, Unstalled},
};

/// Timeout for the head of the next request, from the start of the connection or from the end of the previous response.
/// Clients close their idle connections earlier.
const HEAD_TIME: Duration = Duration::from_secs(60);

/// Size of a connection's send buffer in the kernel, which doubles it. Without this limit the kernel buffers megabytes
/// of a response that a client does not read, and they are not charged to the client. 256 KiB on the way are enough for
/// 2.5 MB/s over a distance of 100 ms.
const SEND_BUFFER_BYTES: usize = 128 * 1024;

/// Pause after a failed accept, for example if the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Accepts connections until `stop` is cancelled, and then waits until all connections have ended.
pub(super) async fn serve(listener: TcpListener, router: Router, connections_max: usize, stop: CancellationToken) {
    let permits = Arc::new(Semaphore::new(connections_max));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => match Arc::clone(&permits).try_acquire_owned() {
                    Ok(permit) => {
                        connections.spawn(connection(stream, router.clone(), stop.clone(), permit));
                    }
                    Err(_) => reject(stream),
                },
                Err(fault) => {
                    tracing::warn!(error = &fault as &dyn Error, "failed to accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = connections.join_next() => log_panic(ended),
            () = stop.cancelled() => break,
        }
    }
    drop(listener);
    while let Some(ended) = connections.join_next().await {
        log_panic(ended);
    }
}

async fn connection(stream: TcpStream, router: Router, stop: CancellationToken, _permit: OwnedSemaphorePermit) {
    // Without TCP_NODELAY, each event of a stream waits for the acknowledgement of the previous event.
    if let Err(fault) = stream.set_nodelay(true) {
        tracing::debug!(error = &fault as &dyn Error, "failed to set TCP_NODELAY");
    }
    if let Err(fault) = sockopt::set_socket_send_buffer_size(&stream, SEND_BUFFER_BYTES) {
        tracing::debug!(error = &fault as &dyn Error, "failed to limit the send buffer");
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
        tracing::debug!(error = &fault as &dyn Error, "a connection failed");
    }
}

/// Rejects a connection above the limit, without waiting for the client.
fn reject(stream: TcpStream) {
    tracing::debug!("rejected a connection: the limit of connections is reached");
    if let Ok(mut stream) = stream.into_std() {
        let _ = stream.write(too_many_connections().as_bytes());
        let _ = stream.shutdown(Shutdown::Write);
    }
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(fault) = ended {
        tracing::error!(error = &fault as &dyn Error, "the task of a connection panicked");
    }
}
