// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Answers a guest's DNS queries with the addresses that the host's own resolver finds.
//!
//! Lookups go through the system's getaddrinfo(3), so the host's hosts file, name service switch and private networks
//! work as for any program on the host. A guest receives only addresses that its policy allows. The host remembers
//! these addresses, since a rule for a name allows only connections to them.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use dns_lookup::{AddrInfoHints, LookupErrorKind, SockType, getaddrinfo};
use tokio::{
    sync::{AcquireError, OwnedSemaphorePermit, Semaphore},
    task::spawn_blocking,
    time::timeout,
};
use waggle_shared::address::canonical;

use super::{
    Guest, HostAddresses, Lookups,
    dns::{self, Code, Family, Question},
};
use crate::domain::egress::{Destination, DomainName, Refused};

/// Timeout of one lookup. Resolvers in guests usually make two attempts of five seconds each.
const LOOKUP_MAX: Duration = Duration::from_secs(10);

/// Maximum number of addresses considered per name. A name server can send thousands. About thirty fit in an answer.
const ADDRESSES_MAX: usize = 64;

/// Makes glibc read its configuration of name services, which happens at the first lookup. If the process has no file
/// descriptor left at that time, glibc reports each name as unknown.
pub(super) fn load_configuration() {
    let _ = getaddrinfo(Some("localhost"), None, None);
}

/// Returns the answer to a message, or `None` for a message that must not be answered.
pub(super) async fn answer(guest: &Guest, message: &[u8]) -> Option<Vec<u8>> {
    let question = match dns::read(message) {
        Ok(question) => question,
        Err(answer) => return answer,
    };
    let (code, addresses) = resolve(guest, &question).await;
    Some(question.answer(code, &addresses))
}

async fn resolve(guest: &Guest, question: &Question) -> (Code, Vec<IpAddr>) {
    let Some(name) = &question.name else { return (Code::NxDomain, Vec::new()) };
    if !guest.network.egress.looks_up(name) {
        guest.refuse(&Refused::Name { name: name.clone() });
        return (Code::NxDomain, Vec::new());
    }
    let found = match look_up(guest, name, question.family).await {
        Ok(found) => found,
        Err(code) => return (code, Vec::new()),
    };
    let host = HostAddresses::now();
    let allowed = found.iter().filter(|address| is_allowed(guest, name, **address, &host));
    // Addresses that do not fit in the answer are not granted.
    let answered: Vec<_> = allowed.take(question.addresses_max()).copied().collect();
    if answered.is_empty() && !found.is_empty() {
        guest.refuse(&Refused::Name { name: name.clone() });
        return (Code::NxDomain, Vec::new());
    }
    let mut granted = guest.granted();
    let now = Instant::now();
    answered.iter().for_each(|address| granted.grant(name, *address, now));
    (Code::NoError, answered.into_iter().map(super::to_guest_address).collect())
}

/// Whether the policy lets the guest reach this address of the name on at least one port.
fn is_allowed(guest: &Guest, name: &DomainName, address: IpAddr, host: &HostAddresses) -> bool {
    let address = canonical(address);
    // Guests can reach only the loopback address that `to_guest_address` translates.
    if address.is_loopback() && super::to_guest_address(address) == address {
        return false;
    }
    let is_hosts_own = host.contains(address);
    let names = std::slice::from_ref(name);
    guest.network.egress.allows_some_port(&Destination { address, port: 0, names, is_hosts_own })
}

/// Looks up at most [`ADDRESSES_MAX`] addresses of the name and family, in the system's order. The error is the code of
/// the answer.
async fn look_up(guest: &Guest, name: &DomainName, family: Family) -> Result<Vec<IpAddr>, Code> {
    let lookup = async {
        let permits = acquire(&guest.lookups, &guest.gateway.lookups).await.map_err(|_closed| Code::ServFail)?;
        let name = name.clone();
        // getaddrinfo cannot be cancelled, so the permits are released only when it returns.
        let lookup = spawn_blocking(move || {
            let _permits = permits;
            // Without a socket type, getaddrinfo returns each address once per type.
            let hints = AddrInfoHints { socktype: SockType::Stream.into(), ..AddrInfoHints::default() };
            let found = getaddrinfo(Some(name.as_str()), None, Some(hints)).map_err(|fault| code(fault.kind()))?;
            let addresses = found.flatten().map(|found| found.sockaddr.ip());
            Ok(addresses.filter(|address| family.contains(*address)).take(ADDRESSES_MAX).collect())
        });
        lookup.await.unwrap_or(Err(Code::ServFail))
    };
    timeout(LOOKUP_MAX, lookup).await.unwrap_or(Err(Code::ServFail))
}

/// Returns the answer's code for a failed lookup. Resolvers cache NXDOMAIN, and programs do not retry after NXDOMAIN.
/// So only a definite "no such name" is NXDOMAIN. All other errors are SERVFAIL, such as a lack of memory on the host.
fn code(fault: LookupErrorKind) -> Code {
    let is_definite = matches!(fault, LookupErrorKind::NoName | LookupErrorKind::NoData);
    if is_definite { Code::NxDomain } else { Code::ServFail }
}

/// Acquires two permits: one of the machine and one shared by all machines, both of the first pool or both of the extra
/// pool.
async fn acquire(machine: &Lookups, all: &Lookups) -> Result<[OwnedSemaphorePermit; 2], AcquireError> {
    let permit = |pool: &Arc<Semaphore>| Arc::clone(pool).acquire_owned();
    let both = async |machine, all| Ok([permit(machine).await?, permit(all).await?]);
    tokio::select! {
        biased;
        permits = both(&machine.first, &all.first) => permits,
        permits = both(&machine.extra, &all.extra) => permits,
    }
}

#[cfg(test)]
mod tests {
    use dns_lookup::LookupError;
    use nix::libc;

    use super::{
        super::{EXTRA_LOOKUPS_MAX, EXTRA_LOOKUPS_PER_MACHINE_MAX, FIRST_LOOKUPS_MAX},
        *,
    };

    #[test]
    fn only_a_definite_no_such_name_is_nxdomain() {
        let code = |fault| code(LookupError::new(fault).kind());
        assert_eq!([libc::EAI_NONAME, libc::EAI_NODATA].map(code), [Code::NxDomain; 2]);
        let others = [libc::EAI_AGAIN, libc::EAI_FAIL, libc::EAI_MEMORY, libc::EAI_SYSTEM, libc::EAI_FAMILY, -999];
        assert_eq!(others.map(code), [Code::ServFail; 6]);
    }

    #[tokio::test]
    async fn slow_lookups_leave_a_permit_for_other_machines() {
        let all = Lookups::new(FIRST_LOOKUPS_MAX, EXTRA_LOOKUPS_MAX);
        let mut taken = Vec::new();
        for _ in 0..8 {
            let machine = Lookups::new(1, EXTRA_LOOKUPS_PER_MACHINE_MAX);
            while let Ok(permits) = timeout(Duration::from_millis(1), acquire(&machine, &all)).await {
                taken.push(permits.unwrap());
            }
        }
        assert_eq!(taken.len(), 8 + 32);
        let machine = Lookups::new(1, EXTRA_LOOKUPS_PER_MACHINE_MAX);
        assert!(timeout(LOOKUP_MAX, acquire(&machine, &all)).await.is_ok());
    }
}
