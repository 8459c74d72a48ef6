// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Answers a guest's questions to the name service, with what the host's own resolver says.
//!
//! The system is asked as any program on the host would ask it, so that its hosts file, its name service switch and its
//! private networks work. A guest is told only of addresses that it may reach, and remembered to have been told.

use std::{
    io,
    net::{IpAddr, ToSocketAddrs as _},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{AcquireError, OwnedSemaphorePermit, Semaphore},
    task::spawn_blocking,
    time::timeout,
};

use super::{
    Guest, HostsOwn, Lookups,
    dns::{self, Code, Family, Question},
};
use crate::domain::egress::{Destination, DomainName, Refused, canonical};

/// How long the system may take over a name. Resolvers in guests ask again after five seconds, twice.
const LOOKUP_MAX: Duration = Duration::from_secs(10);

/// Addresses of a name that are looked at; a name server can send thousands, and an answer has room for thirty.
const ADDRESSES_MAX: usize = 64;

/// How the system's message for a failure that may pass begins; its number does not come through.
const PASSING: &str = "Temporary failure";

/// The answer to one message, if it deserves one.
pub(super) async fn answer(guest: &Guest, message: &[u8]) -> Option<Vec<u8>> {
    let question = match dns::read(message) {
        Ok(question) => question,
        Err(answer) => return answer,
    };
    let (code, addresses) = look_up(guest, &question).await;
    Some(question.answer(code, &addresses))
}

async fn look_up(guest: &Guest, question: &Question) -> (Code, Vec<IpAddr>) {
    let Some(name) = &question.name else { return (Code::NxDomain, Vec::new()) };
    if !guest.network.egress.looks_up(name) {
        guest.refuse(&Refused::Name { name: name.clone() });
        return (Code::NxDomain, Vec::new());
    }
    let wanted = match ask_system(guest, name, question.family).await {
        Ok(found) => found,
        Err(fault) if fault.kind() == io::ErrorKind::TimedOut || fault.to_string().contains(PASSING) => {
            return (Code::ServFail, Vec::new());
        }
        Err(_no_such_name) => return (Code::NxDomain, Vec::new()),
    };
    let hosts_own = HostsOwn::now();
    let led = wanted.iter().filter(|address| may_lead(guest, name, **address, &hosts_own));
    // What is not told is not given either.
    let told: Vec<_> = led.take(question.addresses_max()).copied().collect();
    if told.is_empty() && !wanted.is_empty() {
        guest.refuse(&Refused::Name { name: name.clone() });
        return (Code::NxDomain, Vec::new());
    }
    let mut granted = guest.granted();
    let now = Instant::now();
    told.iter().for_each(|address| granted.grant(name, *address, now));
    (Code::NoError, told.into_iter().map(super::as_guests_see_it).collect())
}

/// Whether the guest may reach the address on some port, given that this name leads there.
fn may_lead(guest: &Guest, name: &DomainName, address: IpAddr, hosts_own: &HostsOwn) -> bool {
    let address = canonical(address);
    // No guest can dial another loopback address of the host's than the one that has an address in guests.
    if address.is_loopback() && super::as_guests_see_it(address) == address {
        return false;
    }
    let is_hosts_own = hosts_own.holds(address);
    let names = std::slice::from_ref(name);
    guest.network.egress.allows_some_port(&Destination { address, port: 0, names, is_hosts_own })
}

/// The name's addresses of a family, in the order in which the system would try them: no more than are looked at.
async fn ask_system(guest: &Guest, name: &DomainName, family: Family) -> io::Result<Vec<IpAddr>> {
    let waits = async {
        let places = place(&guest.lookups, &guest.gateway.lookups).await?;
        let name = name.clone();
        // The system cannot be told to stop asking, so the places stay taken until it has.
        let asking = spawn_blocking(move || {
            let _places = places;
            let found = (name.as_str(), 0).to_socket_addrs()?.map(|found| found.ip());
            Ok(found.filter(|address| family.holds(*address)).take(ADDRESSES_MAX).collect())
        });
        asking.await.map_err(io::Error::other)?
    };
    timeout(LOOKUP_MAX, waits).await.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()))
}

/// One of the machine's own places, and one of all machines'.
async fn place(own: &Lookups, all: &Lookups) -> io::Result<[OwnedSemaphorePermit; 2]> {
    let permit = |places: &Arc<Semaphore>| Arc::clone(places).acquire_owned();
    let permits = async |own, all| Ok([permit(own).await?, permit(all).await?]);
    let taken: Result<_, AcquireError> = tokio::select! {
        biased;
        permits = permits(&own.first, &all.first) => permits,
        permits = permits(&own.further, &all.further) => permits,
    };
    taken.map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{FIRST_LOOKUPS_MAX, FURTHER_LOOKUPS_EACH_MAX, FURTHER_LOOKUPS_MAX},
        *,
    };

    #[tokio::test]
    async fn machines_that_ask_what_nobody_answers_leave_a_place_for_another() {
        let all = Lookups::new(FIRST_LOOKUPS_MAX, FURTHER_LOOKUPS_MAX);
        let mut taken = Vec::new();
        for _ in 0..8 {
            let own = Lookups::new(1, FURTHER_LOOKUPS_EACH_MAX);
            while let Ok(places) = timeout(Duration::from_millis(1), place(&own, &all)).await {
                taken.push(places.unwrap());
            }
        }
        assert_eq!(taken.len(), 8 + 32);
        let own = Lookups::new(1, FURTHER_LOOKUPS_EACH_MAX);
        assert!(timeout(LOOKUP_MAX, place(&own, &all)).await.is_ok());
    }
}
