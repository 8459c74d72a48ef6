// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Lets the web pages of named origins call the server from a browser (CORS, in the Fetch standard).

use std::time::Duration;

use axum::{
    Router,
    http::{HeaderName, HeaderValue, Method, header::WWW_AUTHENTICATE},
};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::domain::origin::Origin;

/// Time for which a browser may remember the answer to a preflight request.
const PREFLIGHT_FRESH: Duration = Duration::from_secs(60 * 60);

/// Answers preflight requests, and lets these origins read the responses.
pub(super) fn allow(router: Router, origins: &[Origin]) -> Router {
    let origins: Vec<_> = origins.iter().filter_map(|origin| HeaderValue::from_str(&origin.to_string()).ok()).collect();
    if origins.is_empty() {
        return router;
    }
    let layer = CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([HeaderName::from_static("mcp-session-id"), WWW_AUTHENTICATE])
        .allow_private_network(true)
        .max_age(PREFLIGHT_FRESH);
    router.layer(layer)
}
