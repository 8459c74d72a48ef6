// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The transport of a session, which records the end of the session's service.
//!
//! When the service has ended, a task of rmcp's own closes the session. This task belongs to no request, so no caller
//! can be checked; the end of the service is what allows it to close this session.

use rmcp::{
    RoleServer,
    service::{RxJsonRpcMessage, TxJsonRpcMessage},
    transport::{Transport, streamable_http_server::session::local::SessionTransport},
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// A session's transport. Dropping it, with the session's service, cancels a token.
pub struct OwnedTransport {
    inner: SessionTransport,
    _ended: DropGuard,
}

impl std::fmt::Debug for OwnedTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OwnedTransport").finish_non_exhaustive()
    }
}

impl OwnedTransport {
    pub(super) fn new(inner: SessionTransport, ended: CancellationToken) -> Self {
        Self { inner, _ended: ended.drop_guard() }
    }
}

impl Transport<RoleServer> for OwnedTransport {
    type Error = <SessionTransport as Transport<RoleServer>>::Error;

    fn send(
        &mut self,
        item: TxJsonRpcMessage<RoleServer>,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send + 'static {
        self.inner.send(item)
    }

    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleServer>> {
        self.inner.receive().await
    }

    async fn close(&mut self) -> Result<(), Self::Error> {
        self.inner.close().await
    }
}
