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
use waggle_link::{Ending, GrantPool};
use waggle_protocol::egress::{EGRESS_FRAME_BYTES_MAX, EgressRequest, Flow, FlowReply};

use self::connection::Connection;
use super::link::LinkHandle;
use crate::streams::{Reader, Writer, halves};

/// Timeout for the host to connect; the host's own timeout is shorter.
const CONNECT_MAX: Duration = Duration::from_secs(180);

/// Timeout for sending a reset. Dropping the stream afterwards has the same effect as a reset.
const RESET_MAX: Duration = Duration::from_secs(5);

/// Carries `tcp`, which a program opened to `to`, until both directions have ended or the flow is reset.
pub(super) async fn carry(tcp: TcpStream, to: SocketAddr, link: &LinkHandle, pool: &GrantPool) {
    let connection = Connection::new(tcp);
    let begun = tokio::select! {
        begun = timeout(CONNECT_MAX, connect(to, link)) => begun.ok().flatten(),
        // The program reset the connection during the wait.
        () = connection.broken() => None,
    };
    let Some((mut reader, mut writer)) = begun else { return connection.reset() };
    let mut tcp = &connection;
    let ending = tokio::select! {
        biased;
        ending = waggle_link::carry(&mut reader, &mut writer, &mut tcp, pool) => Some(ending.unwrap_or(Ending::Reset)),
        // The host must learn of the reset even if no data moves in either direction.
        () = connection.broken() => None,
    };
    if ending.is_none() {
        let reset = async {
            writer.send(&Flow::Reset).await?;
            writer.finish().await
        };
        let _sent = timeout(RESET_MAX, reset).await;
    }
    if ending != Some(Ending::Ended) {
        connection.reset();
    }
}

async fn connect(to: SocketAddr, link: &LinkHandle) -> Option<(Reader, Writer)> {
    let (mut reader, mut writer) = halves(link.open().await?, EGRESS_FRAME_BYTES_MAX);
    let request = EgressRequest::Connect { address: to.ip().to_canonical().into(), port: to.port() };
    writer.send(&request).await.ok()?;
    match reader.receive::<FlowReply<'_>>().await {
        Ok(Some(FlowReply::Connected)) => Some((reader, writer)),
        Ok(Some(FlowReply::Refused { .. } | FlowReply::Answer { .. }) | None) | Err(_) => None,
    }
}
