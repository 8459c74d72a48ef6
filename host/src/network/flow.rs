// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! One stream of the egress link: the guest's request, and the flow or the answer that follows.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, WriteHalf, split},
    net::TcpStream,
    sync::SemaphorePermit,
    time::timeout,
};
use waggle_link::{Ending, FrameReader, FrameWriter, ReceiveFault, Stream, carry};
use waggle_protocol::egress::{EGRESS_FRAME_BYTES_MAX, EgressRequest, FlowReply, HOST_ADDRESS, Refusal};
use waggle_shared::address::canonical;

use super::{
    Guest, ServeFault,
    dial::{self, Buffers},
    resolver,
};
use crate::domain::egress::{Destination, DomainName, Refused};

/// Timeout for receiving the whole request on a new stream.
const REQUEST_MAX: Duration = Duration::from_secs(10);

type Writer<'a> = FrameWriter<WriteHalf<&'a mut Stream>>;

/// Serves one stream until it ends. If `busy` is true, the guest is at its limit of flows, and the request is refused.
///
/// # Errors
/// The guest broke a rule, and the caller must end the link.
pub(super) async fn serve(mut stream: Stream, guest: Arc<Guest>, busy: bool) -> Result<(), ServeFault> {
    let (read, write) = split(&mut stream);
    let (mut reader, mut writer) = (FrameReader::bounded(read, EGRESS_FRAME_BYTES_MAX), FrameWriter::new(write));
    // After the timeout, this return drops the stream, and the drop resets the stream.
    let Ok(request) = timeout(REQUEST_MAX, reader.receive::<EgressRequest<'_>>()).await else { return Ok(()) };
    let request = match request {
        Ok(Some(request)) => Request::from(request),
        Ok(None) | Err(ReceiveFault::Io { .. }) => return Ok(()),
        Err(fault @ ReceiveFault::Frame { .. }) => return Err(ServeFault::Request { source: fault.into() }),
    };
    let mut early = [0];
    let begun = tokio::select! {
        // Data that came with the request is noticed even if the reply is ready at once.
        biased;
        // Before the flow begins, a guest may only end or reset the stream.
        read = reader.stream_mut().read(&mut early) => return match read {
            Ok(0) | Err(_) => Ok(()),
            Ok(_) => Err(ServeFault::Request { source: "received data before the flow began".into() }),
        },
        begun = begin(&guest, request, busy, &mut writer) => begun,
    };
    let Some((mut connection, _permits)) = begun else { return Ok(()) };
    if carry(&stream, &mut connection).await == Ending::Ended {
        // The flow keeps its place meanwhile.
        dial::drained(&connection).await;
    }
    Ok(())
}

/// A guest's request that does not borrow from the reader's buffer.
enum Request {
    Connect(SocketAddr),
    Resolve(Vec<u8>),
}

impl From<EgressRequest<'_>> for Request {
    fn from(request: EgressRequest<'_>) -> Self {
        match request {
            EgressRequest::Connect { address, port } => Self::Connect(SocketAddr::new(canonical(address.into()), port)),
            EgressRequest::Resolve { message } => Self::Resolve(message.to_vec()),
        }
    }
}

/// The permits that a flow holds.
struct Permits<'a> {
    _flow: SemaphorePermit<'a>,
    large_buffers: Option<SemaphorePermit<'a>>,
    medium_buffers: Option<SemaphorePermit<'a>>,
}

impl<'a> Permits<'a> {
    /// Takes a permit for the largest buffers that are left.
    fn acquire(guest: &'a Guest, flow: SemaphorePermit<'a>) -> Self {
        let large_buffers = guest.large_buffers.try_acquire().ok();
        let medium_buffers = if large_buffers.is_none() { guest.medium_buffers.try_acquire().ok() } else { None };
        Self { _flow: flow, large_buffers, medium_buffers }
    }

    /// Returns the limit of the connection's buffers, unless the kernel may choose their size.
    fn buffers(&self) -> Option<Buffers> {
        match (&self.large_buffers, &self.medium_buffers) {
            (Some(_), _) => None,
            (None, Some(_)) => Some(Buffers::Medium),
            (None, None) => Some(Buffers::Small),
        }
    }
}

/// Handles a request, and sends the reply. Returns the connection if the request begins a flow.
async fn begin<'a>(
    guest: &'a Guest,
    request: Request,
    busy: bool,
    writer: &mut Writer<'_>,
) -> Option<(TcpStream, Permits<'a>)> {
    let reply = match request {
        _ if busy => Err(Refusal::Busy),
        Request::Resolve(message) => resolver::answer(guest, &message).await.ok_or(Refusal::Policy),
        Request::Connect(destination) => match connect(guest, destination).await {
            Ok(flow) => {
                writer.send(&FlowReply::Connected).await.ok()?;
                return Some(flow);
            }
            Err(reason) => Err(reason),
        },
    };
    let reply = match &reply {
        Ok(message) => FlowReply::Answer { message },
        Err(reason) => FlowReply::Refused { reason: *reason },
    };
    // Errors are ignored: they mean that the guest does not read the reply.
    if writer.send(&reply).await.is_ok() {
        drop(writer.finish().await);
    }
    None
}

/// A destination that the policy allows.
struct Allowed {
    addresses: Vec<IpAddr>,
    port: u16,
    /// The name that a proxy gets.
    name: Option<DomainName>,
}

/// Decides about a destination. Keeps one name at most, since a thousand names may lead to one address, and hundreds of
/// flows may dial it for half a minute.
fn decide(guest: &Guest, requested: SocketAddr) -> Result<Allowed, Refused> {
    let is_host = requested.ip() == HOST_ADDRESS;
    let (address, port) = (if is_host { Ipv4Addr::LOCALHOST.into() } else { requested.ip() }, requested.port());
    // In the guest, loopback and unspecified addresses mean the guest itself. If the host dialled them, they would mean
    // the host, so they are refused even if the policy allows them.
    let is_guest_itself = requested.ip().is_loopback() || requested.ip().is_unspecified();
    let is_hosts_own = guest.gateway.host_addresses().contains(address);
    let (egress, granted, now) = (&guest.network.egress, guest.granted(), Instant::now());
    let to = Destination { address, port, name_rules: granted.rules(address, now), is_hosts_own };
    let addresses: Vec<_> = match is_host {
        true => egress.loopbacks(port, to.name_rules),
        false => egress.allows(&to).then_some(address).into_iter().collect(),
    };
    let mut names = granted.names(address, now);
    if is_guest_itself || port == 0 || addresses.is_empty() {
        return Err(Refused::Flow { address, port, name: names.next().map(|(name, _)| name.clone()) });
    }
    Ok(Allowed { addresses, port, name: egress.allowed_name(&to, names).cloned() })
}

async fn connect(guest: &Guest, requested: SocketAddr) -> Result<(TcpStream, Permits<'_>), Refusal> {
    let to = match decide(guest, requested) {
        Ok(to) => to,
        Err(refused) => {
            guest.refuse(&refused);
            return Err(Refusal::Policy);
        }
    };
    guest.flow_rate.take().await.map_err(|exceeded| {
        guest.refuse(&Refused::FlowRate { per_second: exceeded.per_second });
        Refusal::Busy
    })?;
    let flow = guest.gateway.flows.try_acquire().map_err(|_full| Refusal::Busy)?;
    let permits = Permits::acquire(guest, flow);
    let connection = dial::dial(&to.addresses, to.port, to.name.as_ref(), guest.gateway.proxy.as_ref()).await?;
    if let Some(buffers) = permits.buffers() {
        dial::limit_buffers(&connection, buffers).map_err(|_fault| Refusal::Busy)?;
    }
    Ok((connection, permits))
}
