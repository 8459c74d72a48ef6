// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Takes the connections that are steered to this process, as many at a time as the link carries.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout_at},
};
use waggle_link::{GrantPool, Opener};
use waggle_protocol::egress::{FLOWS_MAX, GUEST_ADDRESS, GUEST_ADDRESS_V6};

use super::{
    flow,
    link::{self, Carrier},
    names,
    sockets::{Sockets, reset},
};
use crate::console::report;

/// Questions to the name service at a time; more wait.
const QUESTIONS_MAX: usize = 32;

/// Connections at a time: with the questions, as many as the host takes.
const CONNECTIONS_MAX: usize = FLOWS_MAX - QUESTIONS_MAX;

/// How long none of the connections may have ended before further ones are reset instead of waiting.
const FULL_MAX: Duration = Duration::from_secs(5);

/// After the kernel failed to give a connection, for want of memory or descriptors.
const RETRY: Duration = Duration::from_millis(50);

/// Carries everything that arrives at the sockets, with a link that `keep_up` keeps. Never ends, unless the sockets are
/// of no use.
pub(super) async fn carry_all<F: Future<Output = ()>>(
    sockets: Sockets,
    keep_up: impl FnOnce(watch::Sender<Option<Opener>>) -> F,
) -> io::Result<()> {
    let (link, carrier) = link::carrier();
    let shared = Shared {
        carrier,
        pool: Arc::default(),
        connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        questions: Arc::new(Semaphore::new(QUESTIONS_MAX)),
    };
    let mut tasks = JoinSet::new();
    for listener in sockets.listeners {
        tasks.spawn(accept(TcpListener::from_std(listener)?, shared.clone()));
    }
    for resolver in sockets.resolvers {
        let socket = UdpSocket::from_std(resolver)?;
        tasks.spawn(names::answer_datagrams(socket, shared.carrier.clone(), Arc::clone(&shared.questions)));
    }
    tokio::select! {
        () = keep_up(link) => Ok(()),
        // They never end by themselves.
        ended = tasks.join_next() => ended.map_or(Ok(()), |ended| ended.map_err(io::Error::other)),
    }
}

#[derive(Clone, Debug)]
struct Shared {
    carrier: Carrier,
    pool: Arc<GrantPool>,
    connections: Arc<Semaphore>,
    questions: Arc<Semaphore>,
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
        // Where the program meant to go. Whoever dials this very listener means nothing.
        let Some(to) = tcp.local_addr().ok().filter(|to| !is_own(*to)) else {
            reset(tcp);
            continue;
        };
        match slot(&shared.connections, &mut full_since).await {
            Some(slot) => {
                let shared = shared.clone();
                flows.spawn(async move {
                    serve(tcp, to, &shared).await;
                    drop(slot);
                });
            }
            None => reset(tcp),
        }
    }
}

/// A place for one more connection, waited for as long as some end now and then.
async fn slot(connections: &Arc<Semaphore>, full_since: &mut Option<Instant>) -> Option<OwnedSemaphorePermit> {
    if let Ok(slot) = Arc::clone(connections).try_acquire_owned() {
        *full_since = None;
        return Some(slot);
    }
    let since = *full_since.get_or_insert_with(Instant::now);
    let slot = timeout_at(since + FULL_MAX, Arc::clone(connections).acquire_owned()).await.ok()?.ok()?;
    *full_since = None;
    Some(slot)
}

async fn serve(tcp: TcpStream, to: SocketAddr, shared: &Shared) {
    if names::is_name_server(to) {
        names::answer_stream(tcp, &shared.carrier, &shared.questions).await;
    } else {
        flow::carry(tcp, to, &shared.carrier, &shared.pool).await;
    }
}

fn is_own(to: SocketAddr) -> bool {
    let ip = to.ip().to_canonical();
    ip.is_loopback() || ip == GUEST_ADDRESS || ip == GUEST_ADDRESS_V6
}
