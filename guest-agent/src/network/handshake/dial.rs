// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Asks the host to connect to a program's destination.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use waggle_link::{FrameReader, FrameWriter, Stream};
use waggle_protocol::egress::{EGRESS_FRAME_BYTES_MAX, EgressRequest, FlowReply, Refusal};

use crate::network::{limits::FULL_MAX, link::LinkHandle};

/// Timeout for the host to connect; the host's own timeout is shorter.
const CONNECT_MAX: Duration = Duration::from_secs(180);

/// A connection that the host has made, and its permit.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) stream: Stream,
    pub(super) permit: OwnedSemaphorePermit,
}

/// Waits for a permit, and asks the host to connect.
pub(super) async fn dial(to: SocketAddr, link: LinkHandle, connections: Arc<Semaphore>) -> Result<Flow, Refusal> {
    // The semaphore is never closed.
    let permit = timeout(FULL_MAX, connections.acquire_owned()).await.ok().and_then(Result::ok).ok_or(Refusal::Busy)?;
    let stream = timeout(CONNECT_MAX, connect(to, &link)).await.unwrap_or(Err(Refusal::TimedOut))?;
    Ok(Flow { stream, permit })
}

async fn connect(to: SocketAddr, link: &LinkHandle) -> Result<Stream, Refusal> {
    // Without the link, no address can be reached.
    let mut stream = link.open().await.ok_or(Refusal::Unreachable)?;
    let request = EgressRequest::Connect { address: to.ip().to_canonical().into(), port: to.port() };
    FrameWriter::new(&mut stream).send(&request).await.map_err(|_lost| Refusal::Unreachable)?;
    match FrameReader::bounded(&mut stream, EGRESS_FRAME_BYTES_MAX).receive::<FlowReply<'_>>().await {
        Ok(Some(FlowReply::Connected)) => Ok(stream),
        Ok(Some(FlowReply::Refused { reason })) => Err(reason),
        Ok(Some(FlowReply::Answer { .. }) | None) | Err(_) => Err(Refusal::Unreachable),
    }
}

#[cfg(test)]
mod tests;
