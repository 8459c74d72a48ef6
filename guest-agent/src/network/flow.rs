// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! One TCP connection of a program, carried over a stream of the egress link.

mod connection;
#[cfg(test)]
mod tests;

use tokio::net::TcpStream;
use waggle_link::{Ending, Stream};

use self::connection::Connection;
pub(super) use self::connection::reset;

/// Carries `tcp` over `stream`, on which the host has connected, until both directions have ended or the flow is reset.
pub(super) async fn carry(tcp: TcpStream, stream: Stream) {
    let connection = Connection::new(tcp);
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
