// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The handshake of TLS on connections of the HTTP server.
//!
//! A handshake belongs to the time and the place of the connection's first request (`places`). Until its end the
//! library keeps at most 64 KiB of a connection's messages.

use std::sync::Arc;

use rustls::ServerConfig;
use tokio::{io::AsyncWriteExt as _, net::TcpStream, sync::watch};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::either::Either;

use super::{linger::linger, refusal::https_required};

/// The current certificate with its key, or `None` for a server without TLS.
pub type CurrentTls = Option<watch::Receiver<Arc<ServerConfig>>>;

/// The first byte of a handshake (`ContentType`, RFC 8446, section 5.1). No request in plain text begins with it.
const HANDSHAKE: u8 = 22;

/// A connection, with or without TLS.
pub(super) type Secured<S> = Either<S, TlsStream<S>>;

/// Makes the handshake of a new connection, if the server has TLS. A client that speaks plain HTTP gets an answer that
/// says so. Returns `None` if the connection has ended or must be dropped. The caller limits the time.
pub(super) async fn accept(stream: TcpStream, tls: &CurrentTls) -> Option<Secured<TcpStream>> {
    let Some(tls) = tls else { return Some(Either::Left(stream)) };
    // Connections that begin after a reload get the new pair.
    let config = Arc::clone(&tls.borrow());
    handshake(stream, config).await.map(Either::Right)
}

async fn handshake(mut stream: TcpStream, config: Arc<ServerConfig>) -> Option<TlsStream<TcpStream>> {
    let mut first = [0];
    match stream.peek(&mut first).await {
        Ok(1) if first == [HANDSHAKE] => {}
        Ok(1) => {
            let _ = stream.write_all(https_required().as_bytes()).await;
            let _ = stream.shutdown().await;
            linger(stream).await;
            return None;
        }
        // The client has left.
        Ok(_) | Err(_) => return None,
    }
    match TlsAcceptor::from(config).accept(stream).await {
        Ok(stream) => Some(stream),
        Err(fault) => {
            tracing::debug!(error = &fault as &dyn std::error::Error, "a TLS handshake failed");
            None
        }
    }
}
