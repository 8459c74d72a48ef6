// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The identity of this server. The server sends its identity once in each session, and with every answer in the
//! stateless protocol versions.

use rmcp::model::{Implementation, MetaObject};
use serde_json::json;

/// The key in `_meta` that identifies the answering server.
const SERVER_META: &str = "io.modelcontextprotocol/serverInfo";

const NAME: &str = "Waggle";
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Returns the description of the server that clients show.
pub(super) fn about() -> Implementation {
    Implementation::new(NAME, VERSION).with_title("Waggle").with_description("Isolated Linux machines for AI agents.")
}

/// Adds the server's identity to an answer if the request was stateless.
pub(super) fn sign(meta: &mut Option<MetaObject>, is_stateless: bool) {
    if is_stateless {
        let server = json!({"name": NAME, "version": VERSION});
        meta.get_or_insert_default().0.insert(SERVER_META.to_owned(), server);
    }
}
