// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Answers a guest's DNS queries: with the addresses that the host's own resolver finds, and with other records that
//! the host's name servers have.
//!
//! Lookups of addresses go through the system's getaddrinfo(3), so the host's hosts file, name service switch and
//! private networks work as for any program on the host. A guest receives only addresses that its policy allows. The
//! host remembers these addresses, since a rule for a name allows only connections to them.
//!
//! getaddrinfo(3) knows no other records, so the host's name servers are asked for those. A guest may ask for records
//! of the names that its policy looks up, and for the names of addresses that its policy allows. The name servers
//! follow aliases, so the policy is asked again about the names to which these lead.

use std::{
    collections::HashSet,
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
use waggle_protocol::egress::{GUEST_ADDRESS, GUEST_ADDRESS_V6, HOST_ADDRESS};
use waggle_shared::{address::canonical, host_addresses::HostAddresses};

use super::{
    Guest, Lookups,
    dns::{self, Code, Family, Kind, Question},
    name_servers::NameServers,
    records::Target,
};
use crate::domain::egress::{Destination, DomainName, LOOPBACKS, Refused, Reverse};

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
    let Some(name) = &question.name else {
        // Other records can have any name, and NXDOMAIN would mean that there are no names below this one either.
        let code = if question.kind == Kind::Records { Code::Refused } else { Code::NxDomain };
        return Some(question.failure(code));
    };
    let found = match question.kind {
        Kind::Addresses(family) => addresses(guest, name, family, question.addresses_max(family)).await,
        Kind::Records => records(guest, name, &question).await.map(Found::Answer),
    };
    Some(match found {
        Ok(Found::Addresses(found)) => question.addresses(&found),
        Ok(Found::Answer(answer)) => answer,
        Err(code) => question.failure(code),
    })
}

/// The result of a lookup.
enum Found {
    Addresses(Vec<IpAddr>),
    /// A whole answer.
    Answer(Vec<u8>),
}

/// Looks up the allowed addresses of a name, and grants connections to them.
async fn addresses(guest: &Guest, name: &DomainName, family: Family, addresses_max: usize) -> Result<Found, Code> {
    // The system's answer would tell whether an address has a name, also for an address that is not allowed.
    if name.reverse() != Reverse::No {
        guest.refuse_name(name);
        return Err(Code::Refused);
    }
    if !guest.network.egress.looks_up(name) {
        guest.refuse_name(name);
        return Err(Code::NxDomain);
    }
    let found = look_up(guest, name).await?;
    let host = guest.gateway.host_addresses();
    let allowed: Vec<_> = found.iter().filter(|address| is_allowed(guest, name, **address, &host)).copied().collect();
    if allowed.is_empty() && !found.is_empty() {
        guest.refuse_name(name);
        return Err(Code::NxDomain);
    }
    // A name that has an allowed address exists, also for lookups of the other family: musl takes one NXDOMAIN of two
    // answers as the name's. Addresses that do not fit in the answer are not granted.
    let answered = allowed.into_iter().filter(|address| family.contains(*address));
    let answered: Vec<_> = answered.take(addresses_max).collect();
    guest.grant(name, &answered);
    Ok(Found::Addresses(answered.into_iter().map(super::to_guest_address).collect()))
}

/// Asks the host's name servers for records other than addresses.
async fn records(guest: &Guest, name: &DomainName, question: &Question) -> Result<Vec<u8>, Code> {
    let refuse = |code| {
        guest.refuse_name(name);
        Err(code)
    };
    match name.reverse() {
        // The names of allowed addresses are below this one.
        Reverse::Part => return refuse(Code::Refused),
        // To the guest, these addresses mean the host's loopback and the guest itself.
        Reverse::Of(address) if is_guests_own(address) => return Err(Code::NxDomain),
        Reverse::Of(address) if !has_allowed_name(guest, name, address) => return refuse(Code::NxDomain),
        Reverse::No if !guest.network.egress.looks_up_records(name) => return refuse(Code::NxDomain),
        Reverse::Of(_) | Reverse::No => {}
    }
    let deadline = Instant::now() + LOOKUP_MAX;
    let lookup = async {
        let _permits = acquire(guest).await?;
        let servers = spawn_blocking(NameServers::of_host).await.map_err(|_panicked| Code::ServFail)?;
        let whole = deadline.saturating_duration_since(Instant::now());
        Ok(servers.ask(question, whole, &|target| may_lead_to(guest, target)).await)
    };
    match timeout(LOOKUP_MAX, lookup).await.unwrap_or(Err(Code::ServFail))? {
        Some(answer) => Ok(answer),
        None => refuse(Code::NxDomain),
    }
}

/// Whether the guest may get the records of a name to which an alias leads. The name needs no rule that allows it,
/// since sites are often aliases of names of their hosting providers.
fn may_lead_to(guest: &Guest, target: &Target) -> bool {
    // Rules cannot match a name that is not a host name.
    let Some(name) = &target.name else { return target.shares_reverse_zone };
    match name.reverse() {
        Reverse::No => !guest.network.egress.denies_name(name),
        Reverse::Part => target.shares_reverse_zone && !guest.network.egress.denies_name(name),
        Reverse::Of(address) => !is_guests_own(address) && has_allowed_name(guest, name, address),
    }
}

/// Whether the guest may ask for the name of an address.
fn has_allowed_name(guest: &Guest, name: &DomainName, address: IpAddr) -> bool {
    !guest.network.egress.denies_name(name) && is_reachable(guest, address)
}

fn is_guests_own(address: IpAddr) -> bool {
    let own: [IpAddr; 3] = [HOST_ADDRESS.into(), GUEST_ADDRESS.into(), GUEST_ADDRESS_V6.into()];
    let address = canonical(address);
    own.contains(&address) || address.is_loopback() || address.is_unspecified()
}

/// Whether the policy lets the guest reach this address on at least one port, by a rule for the address or by an
/// earlier lookup of a name.
fn is_reachable(guest: &Guest, address: IpAddr) -> bool {
    let address = canonical(address);
    let name_rules = guest.granted().rules(address, Instant::now());
    let is_hosts_own = guest.gateway.host_addresses().contains(address);
    guest.network.egress.allows_some_port(&Destination { address, port: 0, name_rules, is_hosts_own })
}

/// Whether the policy lets the guest reach this address of the name on at least one port.
fn is_allowed(guest: &Guest, name: &DomainName, address: IpAddr, host: &HostAddresses) -> bool {
    let address = canonical(address);
    // Guests can reach only the loopback address that `to_guest_address` translates.
    if address.is_loopback() && super::to_guest_address(address) == address {
        return false;
    }
    let is_hosts_own = host.contains(address);
    let name_rules = guest.network.egress.name_rules(name);
    let reached = if address.is_loopback() { &LOOPBACKS[..] } else { &[address] };
    let to = |address: &IpAddr| Destination { address: *address, port: 0, name_rules, is_hosts_own };
    reached.iter().any(|address| guest.network.egress.allows_some_port(&to(address)))
}

/// Looks up the addresses of a name, at most [`ADDRESSES_MAX`] of each family, in the system's order. The error is the
/// code of the answer.
async fn look_up(guest: &Guest, name: &DomainName) -> Result<Vec<IpAddr>, Code> {
    let lookup = async {
        let permits = acquire(guest).await?;
        let name = name.clone();
        // getaddrinfo cannot be cancelled, so the permits are released only when it returns.
        let lookup = spawn_blocking(move || {
            let _permits = permits;
            // Without a socket type, getaddrinfo returns each address once per type.
            let hints = AddrInfoHints { socktype: SockType::Stream.into(), ..AddrInfoHints::default() };
            match getaddrinfo(Some(name.as_str()), None, Some(hints)) {
                Ok(found) => Ok(bounded(found.flatten().map(|found| found.sockaddr.ip()))),
                Err(fault) => fault_code(fault.kind()).map_or(Ok(Vec::new()), Err),
            }
        });
        lookup.await.unwrap_or(Err(Code::ServFail))
    };
    timeout(LOOKUP_MAX, lookup).await.unwrap_or(Err(Code::ServFail))
}

/// Returns the first [`ADDRESSES_MAX`] addresses of each family. Both loopback addresses become the one that guests
/// reach, so they have the same family.
fn bounded(found: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let [v4_loopback, v6_loopback] = LOOPBACKS;
    let found: Vec<_> = found.map(|address| if address == v6_loopback { v4_loopback } else { address }).collect();
    let mut bounded = Vec::new();
    for family in [Family::V4, Family::V6] {
        let mut of_family: Vec<_> = found.iter().filter(|address| family.contains(**address)).copied().collect();
        let mut seen = HashSet::new();
        of_family.retain(|address| seen.insert(*address));
        bounded.extend(of_family.into_iter().take(ADDRESSES_MAX));
    }
    bounded
}

/// Returns the answer's code for a failed lookup, or `None` if the name exists and has no address. Resolvers cache
/// NXDOMAIN for all kinds of records, and programs do not retry after NXDOMAIN. So only a definite "no such name" is
/// NXDOMAIN. All other errors are SERVFAIL, such as a lack of memory on the host.
fn fault_code(fault: LookupErrorKind) -> Option<Code> {
    if matches!(fault, LookupErrorKind::NoData) {
        return None;
    }
    Some(if matches!(fault, LookupErrorKind::NoName) { Code::NxDomain } else { Code::ServFail })
}

/// Waits until the guest may make a lookup: for its rate, and for its permits.
async fn acquire(guest: &Guest) -> Result<[OwnedSemaphorePermit; 2], Code> {
    guest.lookup_rate.take().await.map_err(|exceeded| {
        guest.refuse(&Refused::LookupRate { per_second: exceeded.per_second });
        Code::ServFail
    })?;
    permits(&guest.lookups, &guest.gateway.lookups).await.map_err(|_closed| Code::ServFail)
}

/// Acquires two permits: one of the machine and one shared by all machines, both of the first pool or both of the extra
/// pool.
async fn permits(machine: &Lookups, all: &Lookups) -> Result<[OwnedSemaphorePermit; 2], AcquireError> {
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
    use std::net::Ipv4Addr;

    use dns_lookup::LookupError;
    use nix::libc;

    use super::{
        super::{
            EXTRA_LOOKUPS_MAX, EXTRA_LOOKUPS_PER_MACHINE_MAX, FIRST_LOOKUPS_MAX, Gateway,
            records::{RelayFault, Response},
        },
        *,
    };
    use crate::domain::egress::{Egress, Network};

    fn guest(policy: &str) -> Guest {
        let egress = Egress::new(policy.parse().unwrap(), None);
        let network = Network { egress, on_refusal: Arc::new(|_refused| {}) };
        Guest::new(network, Arc::new(Gateway::new(None, 1)))
    }

    fn wire(name: &str) -> Vec<u8> {
        let labels =
            name.split('.').flat_map(|label| [&[u8::try_from(label.len()).unwrap()], label.as_bytes()].concat());
        labels.chain([0]).collect()
    }

    /// The result for a guest whose question has an alias and a record at the alias's target as its answer.
    fn follow(policy: &str, kind: u8, asked: &str, target: &str) -> Result<(), RelayFault> {
        let [asked, target] = [asked, target].map(wire);
        let query = [&[7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], &asked[..], &[0, kind, 0, 1]].concat();
        let question = dns::read(&query).unwrap();
        let mut response = query;
        response[2] |= 0x80;
        response[7] = 2;
        for (owner, kind, data) in [(&asked, 5, &target), (&target, kind, &wire("secret"))] {
            response
                .extend([owner, &[0, kind, 0, 1, 0, 0, 0, 9, 0, u8::try_from(data.len()).unwrap()][..], data].concat());
        }
        let guest = guest(policy);
        let response = Response::read(&response, 0x0707, &question).unwrap();
        response.answer(&question, &|target| may_lead_to(&guest, target)).map(drop)
    }

    #[test]
    fn alias_never_leads_to_a_denied_name() {
        const TXT: u8 = 16;
        const ZONE: &str = "deny corp.example, deny *.corp.example, public";
        let check = |policy: &str, target: &str, expected: bool| {
            let found = follow(policy, TXT, "x.attacker.example", target);
            assert_eq!(found, if expected { Ok(()) } else { Err(RelayFault::Denied) }, "{policy}: {target}");
        };
        check(ZONE, "secret.corp.example", false);
        check(ZONE, "corp.example", false);
        check(ZONE, "_sip._tcp.corp.example", false);
        check(ZONE, "a b.corp.example", false);
        check(ZONE, "cdn.example", true);
        check("public", "secret.corp.example", true);
        check("x.attacker.example", "cdn.example", true);
        check("x.attacker.example, deny *.example", "cdn.example", false);
    }

    #[test]
    fn alias_leads_only_to_names_of_allowed_addresses() {
        const PTR: u8 = 12;
        let check = |policy: &str, asked: &str, target: &str, expected: bool| {
            let found = follow(policy, PTR, asked, target);
            assert_eq!(found, if expected { Ok(()) } else { Err(RelayFault::Denied) }, "{policy}: {asked}, {target}");
        };
        for target in ["5.1.168.192.in-addr.arpa", "1.0.0.127.in-addr.arpa", "1.168.192.in-addr.arpa", "in-addr.arpa"] {
            check("public", "y.attacker.example", target, false);
        }
        check("0.0.0.0/0", "y.attacker.example", "1.0.0.127.in-addr.arpa", false);
        check("public", "y.attacker.example", "0/25.1.168.192.in-addr.arpa", false);
        check("public", "y.attacker.example", "1.1.1.1.in-addr.arpa", true);
        check("deny *.in-addr.arpa, public", "y.attacker.example", "1.1.1.1.in-addr.arpa", false);
        // Names of a part of a network (RFC 2317).
        let asked = "1.1.1.1.in-addr.arpa";
        for target in ["1.0/25.1.1.1.in-addr.arpa", "1.0-127.1.1.1.in-addr.arpa", "1.customer.example"] {
            check("public", asked, target, true);
        }
        check("public", asked, "5.1.168.192.in-addr.arpa", false);
        check("public", asked, "1.0/25.1.168.192.in-addr.arpa", false);
        check("1.1.1.1", asked, "2.1.1.1.in-addr.arpa", false);
        check("deny *.0-127.1.1.1.in-addr.arpa, public", asked, "1.0-127.1.1.1.in-addr.arpa", false);
    }

    #[tokio::test]
    async fn records_of_other_names_are_refused() {
        let ask = async |policy: &str, name: &str, kind: u8| {
            let query = [&[7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], &wire(name)[..], &[0, kind, 0, 1]].concat();
            answer(&guest(policy), &query).await.unwrap()[3] & 15
        };
        let [nx_domain, refused] = [Code::NxDomain, Code::Refused].map(|code| code as u8);
        assert_eq!(ask("public", "*.example.org", 16).await, refused);
        assert_eq!(ask("public", "a printer._ipp._tcp.example.org", 33).await, refused);
        assert_eq!(ask("public", "168.192.in-addr.arpa", 2).await, refused);
        assert_eq!(ask("public", "a b.example.org", 1).await, nx_domain);
        // Addresses of reverse names are refused before a lookup.
        for name in ["5.1.168.192.in-addr.arpa", "1.1.1.1.in-addr.arpa", "168.192.in-addr.arpa"] {
            assert_eq!([ask("public", name, 1).await, ask("public", name, 28).await], [refused; 2], "{name}");
        }
        assert_eq!(ask("deny *.in-addr.arpa, public", "1.1.1.1.in-addr.arpa", 12).await, nx_domain);
    }

    #[test]
    fn only_a_definite_no_such_name_is_nxdomain() {
        let code = |fault| fault_code(LookupError::new(fault).kind());
        assert_eq!([libc::EAI_NONAME, libc::EAI_NODATA].map(code), [Some(Code::NxDomain), None]);
        let others = [libc::EAI_AGAIN, libc::EAI_FAIL, libc::EAI_MEMORY, libc::EAI_SYSTEM, libc::EAI_FAMILY, -999];
        assert_eq!(others.map(code), [Some(Code::ServFail); 6]);
    }

    #[test]
    fn addresses_of_each_family_are_bounded() {
        let v4 = (0..1000).map(|last| IpAddr::from(Ipv4Addr::from_bits(0x0101_0000 + last)));
        let v6 = (0..1000).map(|last| IpAddr::from([0x2000, 0, 0, 0, 0, 0, 0, last]));
        let found = bounded(v6.clone().chain(v4.clone()));
        assert_eq!(found, v4.take(ADDRESSES_MAX).chain(v6.take(ADDRESSES_MAX)).collect::<Vec<_>>());
        assert_eq!(bounded(LOOPBACKS.into_iter().rev()), LOOPBACKS[..1]);
    }

    #[tokio::test]
    async fn slow_lookups_leave_a_permit_for_other_machines() {
        let all = Lookups::new(FIRST_LOOKUPS_MAX, EXTRA_LOOKUPS_MAX);
        let mut taken = Vec::new();
        for _ in 0..8 {
            let machine = Lookups::new(1, EXTRA_LOOKUPS_PER_MACHINE_MAX);
            while let Ok(permits) = timeout(Duration::from_millis(1), permits(&machine, &all)).await {
                taken.push(permits.unwrap());
            }
        }
        assert_eq!(taken.len(), 8 + 32);
        let machine = Lookups::new(1, EXTRA_LOOKUPS_PER_MACHINE_MAX);
        assert!(timeout(LOOKUP_MAX, permits(&machine, &all)).await.is_ok());
    }
}
