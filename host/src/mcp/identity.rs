// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Who this server says it is: once to a client with a session, with every answer where there are none.

use rmcp::{
    RoleServer,
    model::{Implementation, MetaObject, ProtocolVersion},
    service::RequestContext,
};
use serde_json::json;

/// Where an answer says who gave it.
const SERVER_META: &str = "io.modelcontextprotocol/serverInfo";

const NAME: &str = "Waggle";
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The server as a client shows it.
pub(super) fn about() -> Implementation {
    Implementation::new(NAME, VERSION).with_title("Waggle").with_description("Isolated Linux machines for AI agents.")
}

/// Whether the request came in the dialect without sessions.
pub(super) fn is_stateless(context: &RequestContext<RoleServer>) -> bool {
    context.protocol_version().is_some_and(|version| version >= ProtocolVersion::V_2026_07_28)
}

/// Says in an answer who gave it, where the dialect wants that.
pub(super) fn sign(meta: &mut Option<MetaObject>, is_stateless: bool) {
    if is_stateless {
        let server = json!({"name": NAME, "version": VERSION});
        meta.get_or_insert_default().0.insert(SERVER_META.to_owned(), server);
    }
}
