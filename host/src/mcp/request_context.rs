// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Reads the principal, the protocol version and the memory of a request from rmcp's context.

use rmcp::{RoleServer, model::ProtocolVersion, service::RequestContext};

use super::memory::RequestMemory;
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

/// Returns the principal that sent the request. A request without HTTP parts came over standard input, to which only
/// the user who started the server can write.
pub(super) fn principal(context: &Context) -> Principal {
    match context.extensions.get::<::http::request::Parts>() {
        Some(parts) => parts.extensions.get::<Principal>().cloned().unwrap_or_else(Principal::anonymous),
        None => Principal::local(),
    }
}

/// Returns the memory that is reserved until the request's answer is written. For a request over standard input, the
/// memory is released when the call ends, because the only client is the user who started the server.
pub(super) fn memory(context: &Context) -> RequestMemory {
    let parts = context.extensions.get::<::http::request::Parts>();
    parts.and_then(|parts| parts.extensions.get::<RequestMemory>()).cloned().unwrap_or_default()
}
