// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The host's end of a machine's egress link: the guest requests a connection, the policy decides, and the host dials.
//!
//! ```text
//!  Gateway            shared by all machines: the proxy, permits for flows and lookups
//!    └─ Guest         one machine: its policy, the addresses that its lookups returned
//!         └─ serve    one link: a task for each stream that the guest opens
//! ```
//!
//! The guest may be hostile. Requests, flows, lookups and names have limits. If a guest breaks a rule, its link ends,
//! and all its flows end with a reset.

pub mod ca_bundle;
mod descriptors;
mod dial;
pub mod dns;
mod flow;
mod name_servers;
mod proxy;
pub mod proxy_file;
mod rate;
pub mod records;
mod resolver;

use std::{
    error::Error,
    io,
    net::{IpAddr, Ipv4Addr, UdpSocket},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Semaphore,
    task::{JoinError, JoinSet},
    time::timeout,
};
use waggle_link::{Acceptor, GreetFault, LinkFault, OpeningFault, Past, answer, await_dial};
use waggle_protocol::{
    Link,
    egress::{FLOWS_MAX, HOST_ADDRESS},
};
use waggle_shared::{
    host_addresses::{HostAddressCache, HostAddresses},
    mutex::lock,
};

use self::rate::Bucket;
pub use self::{
    descriptors::flows_max,
    proxy::{Proxy, ProxyUrlFault},
    rate::{PER_SECOND_DEFAULT, Rates},
};
use crate::domain::egress::{DomainName, Granted, Network, Refused, RefusedNames};

/// Timeout of the handshake with a guest, from its first message.
const GREETING_MAX: Duration = Duration::from_secs(10);

/// Maximum number of flows per machine with large socket buffers. The kernel enlarges a large buffer to some megabytes
/// if the peer is fast and distant. The connections of further flows have buffers of a fixed size.
const LARGE_BUFFER_FLOWS_MAX: usize = 8;

/// Maximum number of further flows per machine with medium buffers. Programs rarely transfer much on more connections
/// at once: browsers have six for each site, package managers about sixteen.
const MEDIUM_BUFFER_FLOWS_MAX: usize = 56;

/// Limits of concurrent lookups. A lookup occupies a thread, for half a minute if the name server does not respond. A
/// machine may use one permit of the first pool, and a few of the extra pool. So the slow lookups of a few machines
/// never block the lookups of all others.
const FIRST_LOOKUPS_MAX: usize = 32;
const EXTRA_LOOKUPS_MAX: usize = 32;
const EXTRA_LOOKUPS_PER_MACHINE_MAX: usize = 7;

/// A destination on the IPv6 internet, to check whether the host has a route. The host sends nothing to this
/// destination.
const IPV6_PROBE: (&str, u16) = ("2000::1", 53);

/// The part of a server's network that all its machines share.
#[derive(Debug)]
pub struct Gateway {
    proxy: Option<Proxy>,
    /// One permit per flow, since each flow uses a file descriptor.
    flows: Arc<Semaphore>,
    lookups: Lookups,
    host_addresses: HostAddressCache,
    rates: Rates,
    ipv6: bool,
}

impl Gateway {
    /// Creates a gateway for at most `flows_max` concurrent flows. The flows go through the proxy if there is one.
    #[must_use]
    pub fn new(proxy: Option<Proxy>, flows_max: usize) -> Self {
        let lookups = Lookups::new(FIRST_LOOKUPS_MAX, EXTRA_LOOKUPS_MAX);
        resolver::load_configuration();
        let (flows, host_addresses) = (Arc::new(Semaphore::new(flows_max)), HostAddressCache::default());
        Self { proxy, flows, lookups, host_addresses, rates: Rates::default(), ipv6: has_ipv6_route() }
    }

    /// Sets the rates of each machine.
    #[must_use]
    pub fn with_rates(self, rates: Rates) -> Self {
        Self { rates, ..self }
    }

    fn host_addresses(&self) -> Arc<HostAddresses> {
        self.host_addresses.current()
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

/// Permits for the lookups of one machine, or of all machines together.
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

/// The state of one machine's egress link. Reconnecting the link does not reset this state.
#[derive(Debug)]
pub struct Guest {
    network: Network,
    gateway: Arc<Gateway>,
    granted: Mutex<Granted>,
    refused_names: Mutex<RefusedNames>,
    lookups: Lookups,
    large_buffers: Semaphore,
    medium_buffers: Semaphore,
    flow_rate: Bucket,
    lookup_rate: Bucket,
}

impl Guest {
    /// Creates the state of a machine that has not requested anything yet.
    #[must_use]
    pub fn new(network: Network, gateway: Arc<Gateway>) -> Self {
        let lookups = Lookups::new(1, EXTRA_LOOKUPS_PER_MACHINE_MAX);
        let Rates { flows, lookups: lookups_per_second } = gateway.rates;
        Self {
            network,
            gateway,
            granted: Mutex::default(),
            refused_names: Mutex::default(),
            lookups,
            large_buffers: Semaphore::new(LARGE_BUFFER_FLOWS_MAX),
            medium_buffers: Semaphore::new(MEDIUM_BUFFER_FLOWS_MAX),
            flow_rate: Bucket::new(flows),
            lookup_rate: Bucket::new(lookups_per_second),
        }
    }

    /// Allows connections to addresses that the guest receives for a name, as far as rules with names decide.
    pub fn grant(&self, name: &DomainName, addresses: &[IpAddr]) {
        let (rules, now) = (self.network.egress.name_rules(name), Instant::now());
        let mut granted = self.granted();
        addresses.iter().for_each(|address| granted.grant(name, rules, *address, now));
    }

    fn granted(&self) -> MutexGuard<'_, Granted> {
        lock(&self.granted)
    }

    fn refuse(&self, refused: &Refused) {
        (self.network.on_refusal)(refused);
    }

    /// Reports a refused lookup. The lookups that a program makes of one name at once are reported once.
    fn refuse_name(&self, name: &DomainName) {
        if lock(&self.refused_names).is_new(name, Instant::now()) {
            self.refuse(&Refused::Name { name: name.clone() });
        }
    }
}

/// The reason why a link ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeFault {
    #[error("failed to accept the guest's connection")]
    Accept { source: io::Error },
    #[error("failed to wait for the guest")]
    Dial { source: OpeningFault },
    #[error("failed to greet the guest")]
    Greet { source: GreetFault },
    #[error("the guest did not greet within {} s", within.as_secs())]
    Silent { within: Duration },
    #[error("the link ended")]
    Link { source: LinkFault },
    #[error("the guest sent an invalid request")]
    Request { source: Box<dyn Error + Send + Sync> },
    #[error("the task of a flow panicked")]
    Task { source: JoinError },
}

/// Waits until the guest dials, and serves its link until the link ends. The link's flows end with the link. Dropping
/// the future ends the link.
pub async fn serve<S>(stream: S, past: Past, guest: Arc<Guest>) -> ServeFault
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let dialled = match await_dial(stream, past).await {
        Ok(dialled) => dialled,
        Err(source) => return ServeFault::Dial { source },
    };
    let records = match timeout(GREETING_MAX, answer(dialled, Link::Egress)).await {
        Ok(Ok(records)) => records,
        Ok(Err(source)) => return ServeFault::Greet { source },
        Err(_elapsed) => return ServeFault::Silent { within: GREETING_MAX },
    };
    let mut link = Acceptor::start(records, Link::Egress);
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

/// Translates an address for a guest: the guest reaches the host's loopback address at [`HOST_ADDRESS`].
fn to_guest_address(address: IpAddr) -> IpAddr {
    if address == Ipv4Addr::LOCALHOST { HOST_ADDRESS.into() } else { address }
}
