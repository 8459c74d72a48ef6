// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Serves the connections and DNS queries that are steered to this process, up to the limits of the link.

use std::{io, sync::Arc};

use tokio::{
    net::{TcpListener, UdpSocket},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout_at},
};
use waggle_link::Opener;
use waggle_protocol::egress::FLOWS_MAX;

use super::{
    dns_server,
    flow::reset,
    handshake,
    handshake::CONNECTIONS_MAX,
    limits::{ACCEPT_RETRY, FULL_MAX},
    link::{self, LinkHandle},
    sockets::Sockets,
};
use crate::console::report;

/// Maximum number of simultaneous DNS queries; further queries wait. Together with the connections, this is the
/// host's limit of flows.
const QUERIES_MAX: usize = FLOWS_MAX - CONNECTIONS_MAX;

/// Maximum number of simultaneous TCP connections to the DNS server, each with at most one query at a time.
const DNS_CONNECTIONS_MAX: usize = QUERIES_MAX;

/// Serves all connections and queries that arrive at the sockets, over the link that `keep_up` maintains. Returns only
/// if `keep_up` returns or a socket or task fails.
pub(super) async fn carry_all<F: Future<Output = ()>>(
    sockets: Sockets,
    keep_up: impl FnOnce(watch::Sender<Option<Opener>>) -> F,
) -> io::Result<()> {
    let (sender, link) = link::handle();
    let queries = Arc::new(Semaphore::new(QUERIES_MAX));
    let dns_connections = Arc::new(Semaphore::new(DNS_CONNECTIONS_MAX));
    let mut tasks = JoinSet::new();
    let listeners = sockets.listeners.into_iter().map(TcpListener::from_std).collect::<io::Result<_>>()?;
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    tasks.spawn(handshake::carry_connections(sockets.wire, listeners, link.clone(), connections));
    for listener in sockets.dns_listeners {
        let listener = TcpListener::from_std(listener)?;
        tasks.spawn(accept_dns(listener, link.clone(), Arc::clone(&queries), Arc::clone(&dns_connections)));
    }
    for socket in sockets.dns_sockets {
        let (socket, link, queries) = (UdpSocket::from_std(socket)?, link.clone(), Arc::clone(&queries));
        tasks.spawn(async move {
            dns_server::answer_datagrams(socket, link, queries).await;
            Ok(())
        });
    }
    tokio::select! {
        () = keep_up(sender) => Ok(()),
        // These tasks end only if they fail.
        ended = tasks.join_next() => ended.map_or(Ok(()), |ended| ended.map_err(io::Error::other)?),
    }
}

/// Accepts connections to the DNS server. Never returns.
async fn accept_dns(
    listener: TcpListener,
    link: LinkHandle,
    queries: Arc<Semaphore>,
    connections: Arc<Semaphore>,
) -> io::Result<()> {
    let mut answering = JoinSet::new();
    let mut full_since = None;
    loop {
        while answering.try_join_next().is_some() {}
        let tcp = match listener.accept().await {
            Ok((tcp, _program)) => tcp,
            Err(fault) => {
                report(&format!("failed to accept a connection to the DNS server: {fault}"));
                sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let Some(permit) = permit(&connections, &mut full_since).await else {
            reset(tcp);
            continue;
        };
        let (link, queries) = (link.clone(), Arc::clone(&queries));
        answering.spawn(async move {
            dns_server::answer_stream(tcp, &link, &queries).await;
            drop(permit);
        });
    }
}

/// Waits for a permit for a new connection; `None` if no connection has ended for [`FULL_MAX`].
async fn permit(connections: &Arc<Semaphore>, full_since: &mut Option<Instant>) -> Option<OwnedSemaphorePermit> {
    if let Ok(permit) = Arc::clone(connections).try_acquire_owned() {
        *full_since = None;
        return Some(permit);
    }
    let since = *full_since.get_or_insert_with(Instant::now);
    let permit = timeout_at(since + FULL_MAX, Arc::clone(connections).acquire_owned()).await.ok()?.ok()?;
    *full_since = None;
    Some(permit)
}
