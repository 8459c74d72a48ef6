// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Reads the principal, the protocol version and the memory of a request from rmcp's context.

use rmcp::{ErrorData, RoleServer, model::ProtocolVersion, service::RequestContext};

use super::{errors, memory::RequestMemory};
use crate::domain::principal::Principal;

/// The context of a request to this server.
pub(super) type Context = RequestContext<RoleServer>;

/// Whether the request uses a protocol version without sessions.
pub(super) fn is_stateless(context: &Context) -> bool {
    context.protocol_version().is_some_and(|version| version >= ProtocolVersion::V_2026_07_28)
}

/// Whether the client accepts a task in place of a result. In protocol versions with sessions, a client cannot
/// distinguish a task from a result.
pub(super) fn accepts_tasks(context: &Context) -> bool {
    is_stateless(context) && context.client_capabilities().is_some_and(|can| can.supports_tasks())
}

/// The transport over which requests arrive, which determines their principals.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin {
    /// HTTP: each request has the principal that the HTTP server found out.
    Http,
    /// Standard input, to which only the user who started the server can write.
    StandardInput,
}

impl Origin {
    /// Returns the principal that sent the request.
    ///
    /// # Errors
    /// An internal error for an HTTP request without a principal.
    pub(super) fn principal(self, context: &Context) -> Result<Principal, ErrorData> {
        let parts = context.extensions.get::<::http::request::Parts>();
        match self {
            Self::StandardInput => Ok(Principal::local()),
            Self::Http => parts.and_then(|parts| parts.extensions.get().cloned()).ok_or_else(errors::no_principal),
        }
    }
}

/// Returns the memory that is reserved until the request's answer is written. For a request over standard input, the
/// memory is released when the call ends, because the only client is the user who started the server.
pub(super) fn memory(context: &Context) -> RequestMemory {
    let parts = context.extensions.get::<::http::request::Parts>();
    parts.and_then(|parts| parts.extensions.get::<RequestMemory>()).cloned().unwrap_or_default()
}
