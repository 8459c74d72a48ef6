// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! One TCP connection of a program, carried over a stream of the egress link.
//!
//! The kernel accepts the connection before the host has decided. If the host refuses the flow, or an error prevents
//! it, the program's connection is reset, and none of its bytes has left the machine.

mod connection;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, time::Duration};

use tokio::{net::TcpStream, time::timeout};
use waggle_link::{Ending, FrameReader, FrameWriter, Stream};
use waggle_protocol::egress::{EGRESS_FRAME_BYTES_MAX, EgressRequest, FlowReply};

use self::connection::Connection;
use super::link::LinkHandle;

/// Timeout for the host to connect; the host's own timeout is shorter.
const CONNECT_MAX: Duration = Duration::from_secs(180);

/// Carries `tcp`, which a program opened to `to`, until both directions have ended or the flow is reset.
pub(super) async fn carry(tcp: TcpStream, to: SocketAddr, link: &LinkHandle) {
    let connection = Connection::new(tcp);
    let begun = tokio::select! {
        begun = timeout(CONNECT_MAX, connect(to, link)) => begun.ok().flatten(),
        // The program reset the connection during the wait.
        () = connection.broken() => None,
    };
    let Some(stream) = begun else { return connection.reset() };
    let mut tcp = &connection;
    let ending = tokio::select! {
        biased;
        ending = waggle_link::carry(&stream, &mut tcp) => ending,
        // The host must learn of the reset even if no data moves in either direction.
        () = connection.broken() => Ending::Reset,
    };
    if ending == Ending::Reset {
        connection.reset();
    }
}

async fn connect(to: SocketAddr, link: &LinkHandle) -> Option<Stream> {
    let mut stream = link.open().await?;
    let request = EgressRequest::Connect { address: to.ip().to_canonical().into(), port: to.port() };
    FrameWriter::new(&mut stream).send(&request).await.ok()?;
    match FrameReader::bounded(&mut stream, EGRESS_FRAME_BYTES_MAX).receive::<FlowReply<'_>>().await {
        Ok(Some(FlowReply::Connected)) => Some(stream),
        Ok(Some(FlowReply::Refused { .. } | FlowReply::Answer { .. }) | None) | Err(_) => None,
    }
}
