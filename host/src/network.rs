// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The host's end of a machine's egress link: the guest requests, the policy decides, the host dials.
//!
//! ```text
//!  Gateway            shared by all machines: the proxy, permits for flows and lookups
//!    └─ Guest         one machine: its policy, the addresses it was given under names
//!         └─ serve    one link: a task for each stream that the guest opens
//! ```
//!
//! Everything on the link comes from a hostile guest. Frames, flows, lookups and names have limits, each stream is read
//! at all times, and a guest that breaks a rule loses its link with all its flows, which end with a reset.

pub mod ca_bundle;
mod descriptors;
mod dial;
mod dns;
mod flow;
mod proxy;
pub mod proxy_file;
mod resolver;

use std::{
    error::Error,
    io,
    net::{IpAddr, Ipv4Addr, UdpSocket},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Semaphore,
    task::{JoinError, JoinSet},
    time::timeout,
};
use waggle_link::{Acceptor, FlowBreach, GrantPool, GreetFault, LinkFault};
use waggle_protocol::{
    Link,
    egress::{FLOWS_MAX, HOST_ADDRESS},
};

pub use self::{
    descriptors::flows_max,
    proxy::{Proxy, ProxyUrlFault},
};
use crate::{
    domain::egress::{Granted, Network, Refused},
    mutex::lock,
};

/// Timeout of a guest's greeting.
const GREETING_MAX: Duration = Duration::from_secs(10);

/// Flows per machine whose connections get buffers as large as the host's kernel chooses: some megabytes for a fast,
/// distant peer. Further flows get small ones.
const LARGE_BUFFER_FLOWS_MAX: usize = 8;

/// Concurrent lookups of all machines: each occupies a thread, for half a minute where a name server does not respond.
/// Each machine may use one of the first pool, so slow lookups of some machines never block all others, and a few of
/// the extra pool.
const FIRST_LOOKUPS_MAX: usize = 32;
const EXTRA_LOOKUPS_MAX: usize = 32;
const EXTRA_LOOKUPS_PER_MACHINE_MAX: usize = 7;

/// A destination on the IPv6 internet, to find out whether there is a route; nothing is sent to it.
const IPV6_PROBE: (&str, u16) = ("2000::1", 53);

/// The part of a server's network that all its machines share.
#[derive(Debug)]
pub struct Gateway {
    proxy: Option<Proxy>,
    /// One permit per flow; each flow holds a descriptor.
    flows: Arc<Semaphore>,
    lookups: Lookups,
    ipv6: bool,
}

impl Gateway {
    /// Creates a gateway with a limit of concurrent flows, which go through the proxy if there is one.
    #[must_use]
    pub fn new(proxy: Option<Proxy>, flows_max: usize) -> Self {
        let lookups = Lookups::new(FIRST_LOOKUPS_MAX, EXTRA_LOOKUPS_MAX);
        Self { proxy, flows: Arc::new(Semaphore::new(flows_max)), lookups, ipv6: has_ipv6_route() }
    }

    /// Whether the host has a route to the IPv6 internet.
    #[must_use]
    pub fn ipv6(&self) -> bool {
        self.ipv6
    }
}

// Connecting a datagram socket looks up the route and sends nothing.
fn has_ipv6_route() -> bool {
    UdpSocket::bind("[::]:0").and_then(|socket| socket.connect(IPV6_PROBE)).is_ok()
}

/// Permits for lookups, of one machine or of all together.
#[derive(Debug)]
struct Lookups {
    first: Arc<Semaphore>,
    extra: Arc<Semaphore>,
}

impl Lookups {
    fn new(first: usize, extra: usize) -> Self {
        Self { first: Arc::new(Semaphore::new(first)), extra: Arc::new(Semaphore::new(extra)) }
    }
}

/// The state of one machine's egress link, kept from one connection of the link to the next.
#[derive(Debug)]
pub struct Guest {
    network: Network,
    gateway: Arc<Gateway>,
    granted: Mutex<Granted>,
    lookups: Lookups,
    large_buffers: Semaphore,
    pool: GrantPool,
}

impl Guest {
    /// Creates the state of a machine that has not requested anything yet.
    #[must_use]
    pub fn new(network: Network, gateway: Arc<Gateway>) -> Self {
        let lookups = Lookups::new(1, EXTRA_LOOKUPS_PER_MACHINE_MAX);
        let large_buffers = Semaphore::new(LARGE_BUFFER_FLOWS_MAX);
        Self { network, gateway, granted: Mutex::default(), lookups, large_buffers, pool: GrantPool::default() }
    }

    fn granted(&self) -> MutexGuard<'_, Granted> {
        lock(&self.granted)
    }

    fn refuse(&self, refused: &Refused) {
        (self.network.on_refusal)(refused);
    }
}

/// The reason why a link ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeFault {
    /// The listener failed.
    #[error("failed to accept the guest's connection")]
    Accept {
        /// The system's error.
        source: io::Error,
    },
    /// Host and guest did not agree on a link.
    #[error("failed to greet the guest")]
    Greet {
        /// The handshake's error.
        source: GreetFault,
    },
    /// The greeting timed out.
    #[error("the guest did not greet within {} s", within.as_secs())]
    Silent {
        /// The timeout.
        within: Duration,
    },
    /// The link ended.
    #[error("the link ended")]
    Link {
        /// The reason.
        source: LinkFault,
    },
    /// The guest broke a rule of a flow.
    #[error("the guest broke the rules of a flow")]
    Flow {
        /// The rule.
        source: FlowBreach,
    },
    /// The guest sent an invalid request.
    #[error("the guest sent an invalid request")]
    Request {
        /// The reason.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A flow's task panicked.
    #[error("the task of a flow panicked")]
    Task {
        /// The panic.
        source: JoinError,
    },
}

/// Serves a link until it ends; its flows end with it. Dropping the future ends the link.
pub async fn serve<S>(mut stream: S, guest: Arc<Guest>) -> ServeFault
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    match timeout(GREETING_MAX, waggle_link::answer_preamble(&mut stream, Link::Egress)).await {
        Ok(Ok(())) => {}
        Ok(Err(source)) => return ServeFault::Greet { source },
        Err(_elapsed) => return ServeFault::Silent { within: GREETING_MAX },
    }
    let mut link = Acceptor::start(stream, Link::Egress);
    let mut flows = JoinSet::new();
    loop {
        tokio::select! {
            opened = link.accept() => match opened {
                Ok(stream) => {
                    let busy = flows.len() >= FLOWS_MAX;
                    flows.spawn(flow::serve(stream, Arc::clone(&guest), busy));
                }
                Err(source) => return ServeFault::Link { source },
            },
            Some(ended) = flows.join_next() => match ended {
                Ok(Ok(())) => {}
                Ok(Err(fault)) => return fault,
                Err(source) => return ServeFault::Task { source },
            },
        }
    }
}

/// The host's address behind an address that a guest dials.
fn to_host_address(address: IpAddr) -> IpAddr {
    if address == HOST_ADDRESS { Ipv4Addr::LOCALHOST.into() } else { address }
}

/// The address at which guests reach one of the host's.
fn to_guest_address(address: IpAddr) -> IpAddr {
    if address == Ipv4Addr::LOCALHOST { HOST_ADDRESS.into() } else { address }
}

/// The addresses of the host's interfaces, or `None` if they are unknown; then each address may be the host's.
#[derive(Debug)]
struct HostAddresses(Option<Vec<IpAddr>>);

impl HostAddresses {
    fn now() -> Self {
        let address = |own: nix::sys::socket::SockaddrStorage| {
            let v4 = own.as_sockaddr_in().map(|own| own.ip().into());
            v4.or_else(|| own.as_sockaddr_in6().map(|own| own.ip().into()))
        };
        let interfaces = nix::ifaddrs::getifaddrs().ok();
        Self(interfaces.map(|all| all.filter_map(|interface| address(interface.address?)).collect()))
    }

    fn contains(&self, address: IpAddr) -> bool {
        self.0.as_ref().is_none_or(|own| own.contains(&address))
    }
}
