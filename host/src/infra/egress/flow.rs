// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! One stream of the egress link: a request, and what comes of it.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{ReadHalf, WriteHalf, split},
    time::timeout,
};
use waggle_link::{Ending, FrameReader, FrameWriter, ReceiveFault, Stream, carry};
use waggle_protocol::egress::{EGRESS_FRAME_BYTES_MAX, EgressRequest, Flow, FlowReply, Refusal};

use super::{Guest, ServeFault, as_the_host_sees_it, dial, hosts_own, names};
use crate::domain::egress::{Destination, Refused, canonical};

/// How long a guest may take over a request once it has opened a stream for it.
const REQUEST_MAX: Duration = Duration::from_secs(10);

type Reader = FrameReader<ReadHalf<Stream>>;
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
    match request {
        Ok(Some(_)) if busy => refuse(&mut writer, Refusal::Busy).await,
        Ok(Some(EgressRequest::Connect { address, port })) => {
            let address = canonical(address.into());
            return connect(&guest, reader, writer, Place { address, port }).await;
        }
        Ok(Some(EgressRequest::Resolve { message })) => {
            let message = message.to_vec();
            match names::answer(&guest, &message).await {
                Some(message) => reply(&mut writer, FlowReply::Answer { message: &message }).await,
                None => refuse(&mut writer, Refusal::Policy).await,
            }
        }
        Ok(None) | Err(ReceiveFault::Io { .. }) => {}
        Err(fault @ ReceiveFault::Frame { .. }) => return Err(ServeFault::Request { source: fault.into() }),
    }
    Ok(())
}

/// Where a guest says that it wants to go.
#[derive(Clone, Copy)]
struct Place {
    address: std::net::IpAddr,
    port: u16,
}

async fn connect(guest: &Guest, mut reader: Reader, mut writer: Writer, asked: Place) -> Result<(), ServeFault> {
    let (address, port) = (as_the_host_sees_it(asked.address), asked.port);
    let names = guest.granted().names(address, std::time::Instant::now());
    // These mean the guest itself. On the host they would mean the host, whatever the policy says of 127.0.0.1.
    let means_itself = asked.address.is_loopback() || asked.address.is_unspecified();
    let is_hosts_own = hosts_own(address);
    let to = Destination { address, port, names: &names, is_hosts_own };
    if means_itself || port == 0 || !guest.network.egress.allows(&to) {
        guest.refuse(&Refused::Flow { address, port, name: names.first().cloned() });
        refuse(&mut writer, Refusal::Policy).await;
        return Ok(());
    }
    let Ok(_place) = guest.gateway.flows.try_acquire() else {
        refuse(&mut writer, Refusal::Busy).await;
        return Ok(());
    };
    let name = guest.network.egress.allowed_name(&to);
    let dialled = tokio::select! {
        dialled = dial::dial(address, port, name, guest.gateway.proxy.as_ref()) => dialled,
        // Before the flow has begun a guest can say nothing but that it does not want it any more.
        heard = reader.receive::<Flow<'_>>() => return match heard {
            Ok(Some(Flow::Reset) | None) | Err(ReceiveFault::Io { .. }) => Ok(()),
            Ok(Some(_)) => Err(ServeFault::Request { source: "data on a flow that has not begun".into() }),
            Err(fault @ ReceiveFault::Frame { .. }) => Err(ServeFault::Request { source: fault.into() }),
        },
    };
    let mut connection = match dialled {
        Ok(connection) => connection,
        Err(reason) => {
            refuse(&mut writer, reason).await;
            return Ok(());
        }
    };
    if writer.send(&FlowReply::Connected).await.is_err() {
        return Ok(());
    }
    match carry(&mut reader, &mut writer, &mut connection, &guest.pool).await {
        Ok(Ending::Ended) => dial::end(&connection),
        Ok(Ending::Reset) => {}
        Err(source) => return Err(ServeFault::Flow { source }),
    }
    Ok(())
}

async fn refuse(writer: &mut Writer, reason: Refusal) {
    reply(writer, FlowReply::Refused { reason }).await;
}

/// A guest that does not take its reply has no use for it.
async fn reply(writer: &mut Writer, message: FlowReply<'_>) {
    if writer.send(&message).await.is_ok() {
        drop(writer.finish().await);
    }
}
