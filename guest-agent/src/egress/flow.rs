// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! One TCP connection of a program's, carried over a stream of the egress link.
//!
//! The kernel has accepted it before the host has decided. A refusal, and whatever else keeps the flow from beginning,
//! is a reset to the program; nothing of what it wrote has left the machine then.

mod connection;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{ReadHalf, WriteHalf},
    net::TcpStream,
    time::timeout,
};
use waggle_link::{Ending, FrameReader, FrameWriter, GrantPool, Stream};
use waggle_protocol::egress::{EGRESS_FRAME_BYTES_MAX, EgressRequest, Flow, FlowReply};

use self::connection::Connection;
use super::link::Carrier;

/// Longest wait for the host's word on a connection, which has a shorter limit of its own.
const CONNECT_MAX: Duration = Duration::from_secs(180);

/// Longest wait to send the mark of a reset; a stream that is dropped without it says the same.
const RESET_MAX: Duration = Duration::from_secs(5);

type Reader = FrameReader<ReadHalf<Stream>>;
type Writer = FrameWriter<WriteHalf<Stream>>;

/// Carries `tcp`, which a program opened to `to`, until both directions have ended or the flow breaks off.
pub(super) async fn carry(tcp: TcpStream, to: SocketAddr, carrier: &Carrier, pool: &GrantPool) {
    let connection = Connection::new(tcp);
    let begun = tokio::select! {
        begun = timeout(CONNECT_MAX, connect(to, carrier)) => begun.ok().flatten(),
        // A program that went while it waited leaves nothing to carry.
        () = connection.broken() => None,
    };
    let Some((mut reader, mut writer)) = begun else { return connection.reset() };
    let mut shared = &connection;
    let ending = tokio::select! {
        biased;
        ending = waggle_link::carry(&mut reader, &mut writer, &mut shared, pool) => Some(ending.unwrap_or(Ending::Reset)),
        // Neither direction may be moving, and the host is to hear of it all the same.
        () = connection.broken() => None,
    };
    if ending.is_none() {
        let told = async {
            writer.send(&Flow::Reset).await?;
            writer.finish().await
        };
        let _told = timeout(RESET_MAX, told).await;
    }
    if ending != Some(Ending::Ended) {
        connection.reset();
    }
}

async fn connect(to: SocketAddr, carrier: &Carrier) -> Option<(Reader, Writer)> {
    let (read, write) = tokio::io::split(carrier.open().await?);
    let (mut reader, mut writer) = (FrameReader::bounded(read, EGRESS_FRAME_BYTES_MAX), FrameWriter::new(write));
    let request = EgressRequest::Connect { address: to.ip().to_canonical().into(), port: to.port() };
    writer.send(&request).await.ok()?;
    match reader.receive::<FlowReply<'_>>().await {
        Ok(Some(FlowReply::Connected)) => Some((reader, writer)),
        Ok(Some(FlowReply::Refused { .. } | FlowReply::Answer { .. }) | None) | Err(_) => None,
    }
}
