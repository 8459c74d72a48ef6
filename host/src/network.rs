// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The host's side of a machine's egress link: the guest asks, the policy decides, the host dials.
//!
//! ```text
//!  Gateway            what all machines share: the proxy, places for flows and look-ups
//!    └─ Guest         one machine: its policy, the names it was given
//!         └─ serve    one link: a task for each stream that the guest opens
//! ```
//!
//! Everything that comes over the link was written by a hostile guest. Frames, flows, look-ups and names are counted
//! and bounded, each stream is read all the time, and a guest that breaks a rule loses its link with all its flows,
//! which end with a reset.

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

/// How long a guest may take over its greeting.
const GREETING_MAX: Duration = Duration::from_secs(10);

/// Flows of a machine at a time whose connections have as large buffers as the host's kernel finds good, which is some
/// megabytes where the other end is fast and far. Those of further ones are small.
const ROOMY_FLOWS_MAX: usize = 8;

/// Look-ups that the system works on for all machines: each holds a thread for as long as it takes, which a name server
/// that does not answer makes half a minute. A machine has one of the first, so that the others always find some free,
/// and so many of the rest.
const FIRST_LOOKUPS_MAX: usize = 32;
const FURTHER_LOOKUPS_MAX: usize = 32;
const FURTHER_LOOKUPS_EACH_MAX: usize = 7;

/// An address anyone on the IPv6 internet has a way to; nothing is sent there.
const SOMEWHERE_V6: (&str, u16) = ("2000::1", 53);

/// What all machines of a server share of its network.
#[derive(Debug)]
pub struct Gateway {
    proxy: Option<Proxy>,
    /// One place a flow; each has a descriptor.
    flows: Arc<Semaphore>,
    lookups: Lookups,
    ipv6: bool,
}

impl Gateway {
    /// A gateway with so many flows at a time, by way of the proxy if there is one.
    #[must_use]
    pub fn new(proxy: Option<Proxy>, flows_max: usize) -> Self {
        let lookups = Lookups::new(FIRST_LOOKUPS_MAX, FURTHER_LOOKUPS_MAX);
        Self { proxy, flows: Arc::new(Semaphore::new(flows_max)), lookups, ipv6: reaches_ipv6() }
    }

    /// Whether the host has a way to the IPv6 internet.
    #[must_use]
    pub fn ipv6(&self) -> bool {
        self.ipv6
    }
}

// Connecting a datagram socket looks up the way and sends nothing.
fn reaches_ipv6() -> bool {
    UdpSocket::bind("[::]:0").and_then(|socket| socket.connect(SOMEWHERE_V6)).is_ok()
}

/// Places for look-ups.
#[derive(Debug)]
struct Lookups {
    first: Arc<Semaphore>,
    further: Arc<Semaphore>,
}

impl Lookups {
    fn new(first: usize, further: usize) -> Self {
        Self { first: Arc::new(Semaphore::new(first)), further: Arc::new(Semaphore::new(further)) }
    }
}

/// One machine, as its egress link is served.
#[derive(Debug)]
pub struct Guest {
    network: Network,
    gateway: Arc<Gateway>,
    granted: Mutex<Granted>,
    lookups: Lookups,
    roomy: Semaphore,
    pool: GrantPool,
}

impl Guest {
    /// A machine that has not asked for anything yet.
    #[must_use]
    pub fn new(network: Network, gateway: Arc<Gateway>) -> Self {
        let lookups = Lookups::new(1, FURTHER_LOOKUPS_EACH_MAX);
        let roomy = Semaphore::new(ROOMY_FLOWS_MAX);
        Self { network, gateway, granted: Mutex::default(), lookups, roomy, pool: GrantPool::default() }
    }

    fn granted(&self) -> MutexGuard<'_, Granted> {
        lock(&self.granted)
    }

    fn refuse(&self, refused: &Refused) {
        (self.network.on_refusal)(refused);
    }
}

/// Why a link is no more.
#[derive(Debug, thiserror::Error)]
pub enum ServeFault {
    /// Nobody can be waited for.
    #[error("failed to wait for the guest")]
    Accept {
        /// What the system said.
        source: io::Error,
    },
    /// The two could not agree on a link.
    #[error("failed to greet the guest")]
    Greet {
        /// What came in the way.
        source: GreetFault,
    },
    /// The guest took too long over it.
    #[error("the guest did not greet within {} s", within.as_secs())]
    Silent {
        /// How long was waited.
        within: Duration,
    },
    /// The link ended.
    #[error("the link ended")]
    Link {
        /// How.
        source: LinkFault,
    },
    /// The guest broke the rules of a flow.
    #[error("the guest broke the rules of a flow")]
    Flow {
        /// Which.
        source: FlowBreach,
    },
    /// The guest asked for what is no request.
    #[error("the guest sent what is no request")]
    Request {
        /// What was wrong.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A flow's task panicked.
    #[error("the task of a flow is lost")]
    Task {
        /// What was caught.
        source: JoinError,
    },
}

/// Serves a link until it ends, and with it every flow. Dropping the future ends them too.
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

/// The host's address that a guest means.
fn as_the_host_sees_it(address: IpAddr) -> IpAddr {
    if address == HOST_ADDRESS { Ipv4Addr::LOCALHOST.into() } else { address }
}

/// The address under which guests dial one of the host's.
fn as_guests_see_it(address: IpAddr) -> IpAddr {
    if address == Ipv4Addr::LOCALHOST { HOST_ADDRESS.into() } else { address }
}

/// The host's own addresses, as they are at the moment. Where the host can't say, each may be one.
#[derive(Debug)]
struct HostsOwn(Option<Vec<IpAddr>>);

impl HostsOwn {
    fn now() -> Self {
        let address = |own: nix::sys::socket::SockaddrStorage| {
            let v4 = own.as_sockaddr_in().map(|own| own.ip().into());
            v4.or_else(|| own.as_sockaddr_in6().map(|own| own.ip().into()))
        };
        let interfaces = nix::ifaddrs::getifaddrs().ok();
        Self(interfaces.map(|all| all.filter_map(|interface| address(interface.address?)).collect()))
    }

    fn holds(&self, address: IpAddr) -> bool {
        self.0.as_ref().is_none_or(|own| own.contains(&address))
    }
}
