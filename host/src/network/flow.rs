// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! One stream of the egress link: a request, and what comes of it.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{WriteHalf, split},
    net::TcpStream,
    sync::SemaphorePermit,
    time::timeout,
};
use waggle_link::{Ending, FrameReader, FrameWriter, ReceiveFault, Stream, carry};
use waggle_protocol::egress::{EGRESS_FRAME_BYTES_MAX, EgressRequest, Flow, FlowReply, Refusal};

use super::{Guest, HostsOwn, ServeFault, as_the_host_sees_it, dial, resolver};
use crate::domain::egress::{Destination, Refused, canonical};

/// How long a guest may take over a request once it has opened a stream for it.
const REQUEST_MAX: Duration = Duration::from_secs(10);

type Writer = FrameWriter<WriteHalf<Stream>>;

/// Serves one stream to its end; a busy host refuses.
///
/// # Errors
/// What the guest has broken; its link is to end.
pub(super) async fn serve(stream: Stream, guest: Arc<Guest>, busy: bool) -> Result<(), ServeFault> {
    let (read, write) = split(stream);
    let mut reader = FrameReader::bounded(read, EGRESS_FRAME_BYTES_MAX);
    let mut writer = FrameWriter::new(write);
    // One that takes longer has its stream reset.
    let Ok(request) = timeout(REQUEST_MAX, reader.receive::<EgressRequest<'_>>()).await else { return Ok(()) };
    let asked = match request {
        Ok(Some(request)) => Asked::from(request),
        Ok(None) | Err(ReceiveFault::Io { .. }) => return Ok(()),
        Err(fault @ ReceiveFault::Frame { .. }) => return Err(ServeFault::Request { source: fault.into() }),
    };
    let begun = tokio::select! {
        begun = begin(&guest, asked, busy, &mut writer) => begun,
        // Before the flow has begun a guest can say nothing but that it does not want it any more.
        heard = reader.receive::<Flow<'_>>() => return match heard {
            Ok(Some(Flow::Reset) | None) | Err(ReceiveFault::Io { .. }) => Ok(()),
            Ok(Some(_)) => Err(ServeFault::Request { source: "data on a flow that has not begun".into() }),
            Err(fault @ ReceiveFault::Frame { .. }) => Err(ServeFault::Request { source: fault.into() }),
        },
    };
    let Some((mut connection, _places)) = begun else { return Ok(()) };
    match carry(&mut reader, &mut writer, &mut connection, &guest.pool).await {
        Ok(Ending::Ended) => dial::end(&connection),
        Ok(Ending::Reset) => {}
        Err(source) => return Err(ServeFault::Flow { source }),
    }
    Ok(())
}

/// What a guest asks for.
enum Asked {
    Connect(Place),
    Answer(Vec<u8>),
}

impl From<EgressRequest<'_>> for Asked {
    fn from(request: EgressRequest<'_>) -> Self {
        match request {
            EgressRequest::Connect { address, port } => {
                Self::Connect(Place { address: canonical(address.into()), port })
            }
            EgressRequest::Resolve { message } => Self::Answer(message.to_vec()),
        }
    }
}

/// Where a guest says that it wants to go.
#[derive(Clone, Copy)]
struct Place {
    address: std::net::IpAddr,
    port: u16,
}

/// What a flow has a part of.
struct Places<'a> {
    _all: SemaphorePermit<'a>,
    roomy: Option<SemaphorePermit<'a>>,
}

/// Replies, unless a flow begins: then that is still to be told.
async fn begin<'a>(guest: &'a Guest, asked: Asked, busy: bool, writer: &mut Writer) -> Option<(TcpStream, Places<'a>)> {
    let reply = match asked {
        _ if busy => Err(Refusal::Busy),
        Asked::Answer(question) => resolver::answer(guest, &question).await.ok_or(Refusal::Policy),
        Asked::Connect(place) => match connect(guest, place).await {
            Ok(flow) => {
                // The flow's carrier sends it, and reads meanwhile.
                writer.queue(&FlowReply::Connected).ok()?;
                return Some(flow);
            }
            Err(reason) => Err(reason),
        },
    };
    let reply = match &reply {
        Ok(message) => FlowReply::Answer { message },
        Err(reason) => FlowReply::Refused { reason: *reason },
    };
    // A guest that does not take its reply has no use for it.
    if writer.send(&reply).await.is_ok() {
        drop(writer.finish().await);
    }
    None
}

async fn connect(guest: &Guest, asked: Place) -> Result<(TcpStream, Places<'_>), Refusal> {
    let (address, port) = (as_the_host_sees_it(asked.address), asked.port);
    let names = guest.granted().names(address, std::time::Instant::now());
    // These mean the guest itself. On the host they would mean the host, whatever the policy says of 127.0.0.1.
    let means_itself = asked.address.is_loopback() || asked.address.is_unspecified();
    let is_hosts_own = HostsOwn::now().holds(address);
    let to = Destination { address, port, names: &names, is_hosts_own };
    if means_itself || port == 0 || !guest.network.egress.allows(&to) {
        guest.refuse(&Refused::Flow { address, port, name: names.first().cloned() });
        return Err(Refusal::Policy);
    }
    let all = guest.gateway.flows.try_acquire().map_err(|_full| Refusal::Busy)?;
    let places = Places { _all: all, roomy: guest.roomy.try_acquire().ok() };
    let name = guest.network.egress.allowed_name(&to);
    let connection = dial::dial(address, port, name, guest.gateway.proxy.as_ref()).await?;
    if places.roomy.is_none() {
        dial::narrow(&connection).map_err(|_fault| Refusal::Busy)?;
    }
    Ok((connection, places))
}
