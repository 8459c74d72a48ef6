// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The handshake of the programs' TCP connections, which waits for the host: `connect` succeeds only if the host has
//! connected, and fails with the reason if not.
//!
//! ```text
//!   program             guest kernel                      agent                        host
//!     ├─ connect ──▶ SYN, captured ─────────────────────▶ asks the host ─────────────▶ dials
//!     │              dropped by the listener's filter
//!     │                                                   ◀───────────────── Connected ┤
//!     │              SYN again, passed by the filter ◀─── sends the SYN with its mark
//!     │◀─ connected ─ handshake, accept ────────────────▶ carries the flow
//!     │                                                   ◀─ Refused ┄ or ┄ Unreachable ┤
//!     │◀─ ECONNREFUSED, EHOSTUNREACH ─── RST, ICMP ◀───── answers for the server
//! ```
//!
//! The agent never answers for a server that did not answer in time: the program's kernel gives up by itself. While a
//! program waits, its kernel repeats the SYN, which starts no second dial. A program that stops waiting sends nothing,
//! so the agent probes the attempts that take long.
//!
//! Only the agent can send marked packets. A connection that is accepted without a dialled flow is reset.

mod attempts;
mod dial;
mod filter;
mod packet;
mod wire;

use std::{future::poll_fn, io, net::SocketAddr, sync::Arc, task::Poll, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::{AbortHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use waggle_protocol::egress::{FLOWS_MAX, Refusal};

pub(super) use self::wire::{WireSockets, accept_only_marked};
use self::{
    attempts::Attempts,
    dial::{Flow, dial},
    packet::{Captured, Ends, Packet, Syn},
    wire::Wire,
};
use super::{
    flow::{self, reset},
    limits::ACCEPT_RETRY,
    link::LinkHandle,
};
use crate::console::report;

/// Maximum number of simultaneous connections, including those that are being dialled: seven eighths of the host's
/// limit of flows. The rest is for DNS queries.
pub(super) const CONNECTIONS_MAX: usize = FLOWS_MAX - FLOWS_MAX / 8;

/// Time between two checks of the attempts.
const CHECK: Duration = Duration::from_secs(1);

/// Connects programs to the host, and carries their connections; the number of permits limits the connections. Returns
/// only if a socket fails.
pub(super) async fn carry_connections(
    sockets: WireSockets,
    listeners: Vec<TcpListener>,
    link: LinkHandle,
    connections: Arc<Semaphore>,
) -> io::Result<()> {
    let handshakes = Handshakes {
        wire: Wire::new(sockets)?,
        attempts: Attempts::default(),
        dials: JoinSet::new(),
        link,
        connections,
    };
    handshakes.run(&listeners).await;
    Ok(())
}

struct Handshakes {
    wire: Wire,
    attempts: Attempts<Dial, Flow>,
    dials: JoinSet<Dialled>,
    link: LinkHandle,
    connections: Arc<Semaphore>,
}

/// A running dial, which dropping cancels.
#[derive(Debug)]
struct Dial(AbortHandle);

impl Drop for Dial {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The end of a dial.
struct Dialled {
    ends: Ends,
    number: u64,
    answer: Result<Flow, Refusal>,
}

impl Handshakes {
    async fn run(mut self, listeners: &[TcpListener]) {
        let (mut flows, mut first) = (JoinSet::new(), 0);
        let mut checks = interval(CHECK);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            while flows.try_join_next().is_some() {}
            first = (first + 1) % listeners.len().max(1);
            tokio::select! {
                captured = poll_fn(|cx| self.wire.poll_captured(cx)) => self.on_captured(captured),
                // A cancelled dial has no answer.
                Some(dialled) = self.dials.join_next() => drop(dialled.map(|dialled| self.on_dialled(dialled))),
                accepted = accept(listeners, first) => match accepted {
                    Ok((tcp, client)) => if let Some(dialled) = self.on_accepted(&tcp, client) {
                        flows.spawn(async move {
                            flow::carry(tcp, dialled.stream).await;
                            drop(dialled.permit);
                        });
                    } else {
                        reset(tcp);
                    }
                    Err(fault) => {
                        report(&format!("failed to accept a connection: {fault}"));
                        sleep(ACCEPT_RETRY).await;
                    }
                },
                now = checks.tick(), if !self.attempts.is_empty() => self.check(now),
            }
        }
    }

    fn on_captured(&mut self, captured: Vec<Captured>) {
        for one in captured {
            match one {
                Captured::Syn(syn) => self.on_syn(syn),
                Captured::Gone(ends) => self.attempts.on_gone(ends),
            }
        }
    }

    fn on_syn(&mut self, syn: Syn) {
        let ends = syn.ends;
        let start = |number| {
            let dialling = dial(ends.server, self.link.clone(), Arc::clone(&self.connections));
            Dial(self.dials.spawn(async move { Dialled { ends, number, answer: dialling.await } }))
        };
        if let Some(syn) = self.attempts.on_syn(syn, Instant::now(), start) {
            self.wire.send(&syn.again());
        }
    }

    fn on_dialled(&mut self, dialled: Dialled) {
        // A SYN that was repeated meanwhile belongs to this attempt. After it has ended, the SYN would start a new one.
        let captured = self.wire.captured();
        self.on_captured(captured);
        let Dialled { ends, number, answer } = dialled;
        let packet = match answer {
            Ok(flow) => self.attempts.on_connected(ends, number, flow, Instant::now()).map(Syn::again),
            Err(reason) => self.attempts.on_failed(ends, number).and_then(|syn| refuse(&syn, reason)),
        };
        if let Some(packet) = packet {
            self.wire.send(&packet);
        }
    }

    /// Returns the dialled flow of an accepted connection.
    fn on_accepted(&mut self, tcp: &TcpStream, client: SocketAddr) -> Option<Flow> {
        // As in `on_dialled`: a SYN that was repeated before the handshake would start a new attempt.
        let captured = self.wire.captured();
        self.on_captured(captured);
        wire::accept_all(tcp);
        self.attempts.on_accepted(Ends::new(client, tcp.local_addr().ok()?))
    }

    fn check(&mut self, now: Instant) {
        for ends in self.attempts.check(now) {
            self.wire.send(&ends.probe());
        }
    }
}

/// Returns the answer for a server to which the host could not connect; `None` if the server did not answer either.
fn refuse(syn: &Syn, reason: Refusal) -> Option<Packet> {
    match reason {
        Refusal::Policy | Refusal::Refused | Refusal::Busy => Some(syn.refusal()),
        Refusal::Unreachable => Some(syn.unreachable()),
        Refusal::TimedOut => None,
    }
}

/// Accepts a connection. Returns its program's address as well, because `peer_addr` fails on a connection that was
/// reset. `first` is the number of the listener that is asked first, so that connections of one family do not delay
/// those of the other.
async fn accept(listeners: &[TcpListener], first: usize) -> io::Result<(TcpStream, SocketAddr)> {
    poll_fn(|cx| {
        for listener in listeners.iter().cycle().skip(first).take(listeners.len()) {
            if let Poll::Ready(accepted) = listener.poll_accept(cx) {
                return Poll::Ready(accepted);
            }
        }
        Poll::Pending
    })
    .await
}
