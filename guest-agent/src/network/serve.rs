// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Accepts the connections that are steered to this process, up to the limit of the link.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout_at},
};
use waggle_link::Opener;
use waggle_protocol::egress::{FLOWS_MAX, GUEST_ADDRESS, GUEST_ADDRESS_V6};

use super::{
    dns_server, flow,
    link::{self, LinkHandle},
    sockets::{Sockets, reset},
};
use crate::console::report;

/// Maximum number of simultaneous DNS queries; further queries wait.
const QUERIES_MAX: usize = 32;

/// Maximum number of simultaneous connections. Together with the queries, this equals the host's limit of flows.
const CONNECTIONS_MAX: usize = FLOWS_MAX - QUERIES_MAX;

/// Timeout at the connection limit: if no connection ends within this time, new connections are reset.
const FULL_MAX: Duration = Duration::from_secs(5);

/// Delay after a failed `accept`, which means that the kernel is out of memory or descriptors.
const RETRY: Duration = Duration::from_millis(50);

/// Serves all connections and queries that arrive at the sockets, over the link that `keep_up` maintains. Returns only
/// if `keep_up` returns or a socket or task fails.
pub(super) async fn carry_all<F: Future<Output = ()>>(
    sockets: Sockets,
    keep_up: impl FnOnce(watch::Sender<Option<Opener>>) -> F,
) -> io::Result<()> {
    let (sender, link) = link::handle();
    let shared = Shared {
        link,
        connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        queries: Arc::new(Semaphore::new(QUERIES_MAX)),
    };
    let mut tasks = JoinSet::new();
    for listener in sockets.listeners {
        tasks.spawn(accept(TcpListener::from_std(listener)?, shared.clone()));
    }
    for socket in sockets.dns_sockets {
        let socket = UdpSocket::from_std(socket)?;
        tasks.spawn(dns_server::answer_datagrams(socket, shared.link.clone(), Arc::clone(&shared.queries)));
    }
    tokio::select! {
        () = keep_up(sender) => Ok(()),
        // These tasks end only if they panic.
        ended = tasks.join_next() => ended.map_or(Ok(()), |ended| ended.map_err(io::Error::other)),
    }
}

#[derive(Clone, Debug)]
struct Shared {
    link: LinkHandle,
    connections: Arc<Semaphore>,
    queries: Arc<Semaphore>,
}

async fn accept(listener: TcpListener, shared: Shared) {
    let mut flows = JoinSet::new();
    let mut full_since = None;
    loop {
        while flows.try_join_next().is_some() {}
        let tcp = match listener.accept().await {
            Ok((tcp, _program)) => tcp,
            Err(fault) => {
                report(&format!("failed to accept a connection: {fault}"));
                sleep(RETRY).await;
                continue;
            }
        };
        // The local address is the destination that the program chose; the listener's own address is invalid.
        let Some(to) = tcp.local_addr().ok().filter(|to| !is_own(*to)) else {
            reset(tcp);
            continue;
        };
        match permit(&shared.connections, &mut full_since).await {
            Some(permit) => {
                let shared = shared.clone();
                flows.spawn(async move {
                    serve(tcp, to, &shared).await;
                    drop(permit);
                });
            }
            None => reset(tcp),
        }
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

async fn serve(tcp: TcpStream, to: SocketAddr, shared: &Shared) {
    if dns_server::is_dns_server(to) {
        dns_server::answer_stream(tcp, &shared.link, &shared.queries).await;
    } else {
        flow::carry(tcp, to, &shared.link).await;
    }
}

fn is_own(to: SocketAddr) -> bool {
    let ip = to.ip().to_canonical();
    ip.is_loopback() || ip == GUEST_ADDRESS || ip == GUEST_ADDRESS_V6
}
