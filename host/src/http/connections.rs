// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Accepts connections up to a limit, and closes connections that send no request or do not read the response.
//! `places` decides which connection goes when there are too many.

use std::{error::Error, io::Write as _, net::Shutdown, sync::Arc, time::Duration};

use axum::Router;
use futures_util::{FutureExt as _, future::ready};
use hyper::{
    Request,
    body::Incoming,
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustix::net::sockopt;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::{
    linger::linger,
    places::{Place, Places},
    refusal::{connection_evicted, head_too_slow, too_many_connections},
    stall::{STALL, Unstalled},
    tls::{self, CurrentTls},
};

/// Timeout for the head of each request after a connection's first one, from the end of the previous response. Clients
/// close their idle connections earlier.
const HEAD_TIME: Duration = Duration::from_secs(60);

/// Maximum size of a head, in bytes; servers in front of this one mostly allow less. The buffer of a connection's
/// requests is no larger either, so it is also the memory of a peer that never completes a head.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Size of a connection's send buffer in the kernel, which doubles it. Without this limit the kernel buffers megabytes
/// of a response that a client does not read, and they are not charged to the client. 256 KiB on the way are enough for
/// 2.5 MB/s over a distance of 100 ms.
const SEND_BUFFER_BYTES: usize = 128 * 1024;

/// TCP keepalive and the timeout for unacknowledged data, [`STALL`], detect a vanished client within a minute or so.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// Pause after a failed accept, for example if the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Accepts connections until `stop` is cancelled, and then waits until all connections have ended.
pub(super) async fn serve(
    listener: TcpListener,
    tls: CurrentTls,
    router: Router,
    connections_max: usize,
    stop: CancellationToken,
) {
    let places = Places::new(connections_max);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => match places.take().await {
                    Some(place) => {
                        connections.spawn(connection(stream, tls.clone(), router.clone(), stop.clone(), place));
                    }
                    None => reject(stream, tls.is_some()),
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

async fn connection(stream: TcpStream, tls: CurrentTls, router: Router, stop: CancellationToken, place: Place) {
    // Without TCP_NODELAY, each event of a stream waits for the acknowledgement of the previous event.
    if let Err(fault) = stream.set_nodelay(true) {
        tracing::debug!(error = &fault as &dyn Error, "failed to set TCP_NODELAY");
    }
    if let Err(fault) = sockopt::set_socket_send_buffer_size(&stream, SEND_BUFFER_BYTES) {
        tracing::debug!(error = &fault as &dyn Error, "failed to limit the send buffer");
    }
    if let Err(fault) = detect_loss(&stream) {
        tracing::debug!(error = &fault as &dyn Error, "failed to set the timeouts of TCP");
    }
    // The client gets no answer in plain text.
    let secured = tokio::select! {
        secured = tls::accept(stream, &tls) => secured,
        () = place.evicted() => None,
        () = place.first_head_timed_out() => None,
        () = stop.cancelled() => None,
    };
    if let Some(stream) = secured {
        serve_requests(stream, router, &stop, &place).await;
    }
}

/// Makes the kernel close the connection of a client that has vanished, even if nothing is sent.
fn detect_loss(stream: &TcpStream) -> rustix::io::Result<()> {
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_user_timeout(stream, u32::try_from(STALL.as_millis()).unwrap_or(u32::MAX))?;
    sockopt::set_socket_keepalive(stream, true)
}

/// The end of a connection.
enum End {
    Served(hyper::Result<()>),
    Evicted,
    /// The timeout of the first head.
    TooSlow,
}

/// Serves the requests of a connection until it ends.
async fn serve_requests<S>(stream: S, router: Router, stop: &CancellationToken, place: &Place)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let standing = Arc::clone(place.standing());
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        if standing.record_head().is_err() {
            return ready(Ok(connection_evicted())).left_future();
        }
        request.extensions_mut().insert(Arc::clone(&standing));
        router.call(request).right_future()
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(HEAD_BYTES_MAX);
    let mut served = builder.serve_connection(TokioIo::new(Unstalled::new(stream, STALL)), service);
    let until_stopped = async {
        tokio::select! {
            outcome = &mut served => outcome,
            () = stop.cancelled() => {
                Pin::new(&mut served).graceful_shutdown();
                (&mut served).await
            }
        }
    };
    let end = tokio::select! {
        // An evicted connection must not begin a request that has just arrived.
        biased;
        () = place.evicted() => End::Evicted,
        outcome = until_stopped => End::Served(outcome),
        () = place.first_head_timed_out() => End::TooSlow,
    };
    let mut stream = served.into_parts().io.into_inner();
    let answer = match end {
        End::Served(outcome) => {
            let Err(fault) = outcome else { return };
            tracing::debug!(error = &fault as &dyn Error, "a connection failed");
            if fault.is_parse() {
                tokio::select! {
                    () = linger(stream) => {}
                    () = place.evicted() => {}
                }
            }
            return;
        }
        // A client that has sent requests does not expect an answer without another one.
        End::Evicted if place.has_head() => return,
        End::Evicted => too_many_connections(),
        End::TooSlow => head_too_slow(),
    };
    tracing::debug!("closed a connection without a complete request");
    // Nothing has been sent on this connection, so the kernel takes the answer at once.
    let _ = stream.write_all(answer.as_bytes()).now_or_never();
    let _ = stream.shutdown().now_or_never();
}

/// Rejects a connection above the limit, without waiting for the client. A client that waits for a handshake could not
/// read a response.
fn reject(stream: TcpStream, has_tls: bool) {
    tracing::debug!("rejected a connection: the limit of connections is reached");
    if !has_tls && let Ok(mut stream) = stream.into_std() {
        let _ = stream.write(too_many_connections().as_bytes());
        let _ = stream.shutdown(Shutdown::Write);
    }
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(fault) = ended {
        tracing::error!(error = &fault as &dyn Error, "the task of a connection panicked");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use axum::routing::any;
    use tokio::io::{AsyncReadExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn vanished_client_is_detected_within_a_minute() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        detect_loss(&stream).unwrap();
        assert!(sockopt::socket_keepalive(&stream).unwrap());
        assert_eq!(sockopt::tcp_user_timeout(&stream).unwrap(), 60_000);
        assert_eq!(sockopt::tcp_keepidle(&stream).unwrap(), Duration::from_secs(30));
    }

    #[tokio::test]
    async fn request_that_arrives_at_an_eviction_does_not_begin_and_is_answered() {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let router = Router::new().fallback(any(move || async move { counted.fetch_add(1, SeqCst) }.map(|_| "called")));
        for _ in 0..32 {
            let places = Places::new(1);
            let place = places.take().await.unwrap();
            let (mut client, server) = duplex(64 * 1024);
            client.write_all(b"POST /mcp HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            assert!(places.take().now_or_never().is_none());
            serve_requests(server, router.clone(), &CancellationToken::new(), &place).await;
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        }
        assert_eq!(calls.load(SeqCst), 0);
    }
}
