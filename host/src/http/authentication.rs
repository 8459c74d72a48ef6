// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Finds the principal of a request: the owner of its bearer token, or the anonymous principal on a server without
//! tokens.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{
        HeaderValue, StatusCode,
        header::{AUTHORIZATION, WWW_AUTHENTICATE},
    },
    middleware::Next,
    response::Response,
};
use tokio::sync::watch;

use super::{
    places::Standing,
    refusal::{connection_evicted, refuse},
};
use crate::{
    domain::{principal::Principal, tokens::Tokens},
    error_code::ErrorCode,
};

/// The current tokens, or `None` if the server accepts all callers.
pub type CurrentTokens = Option<watch::Receiver<Arc<Tokens>>>;

/// The challenges of RFC 6750 for a missing token and for an invalid token.
const MISSING_TOKEN: HeaderValue = HeaderValue::from_static("Bearer realm=\"waggle\"");
const INVALID_TOKEN: HeaderValue = HeaderValue::from_static("Bearer realm=\"waggle\", error=\"invalid_token\"");

/// Passes the request on with its principal instead of its token, or rejects the request.
pub(super) async fn authenticate(State(tokens): State<CurrentTokens>, mut request: Request, next: Next) -> Response {
    let header = request.headers_mut().remove(AUTHORIZATION);
    let principal = match &tokens {
        None => Principal::anonymous(),
        Some(tokens) => {
            let tokens = Arc::clone(&tokens.borrow());
            match header.as_ref().and_then(bearer).and_then(|token| tokens.principal(token)) {
                Some(principal) => principal.clone(),
                None => return refused(header.is_some()),
            }
        }
    };
    if let Some(standing) = request.extensions_mut().remove::<Arc<Standing>>()
        && standing.prove().is_err()
    {
        return connection_evicted();
    }
    request.extensions_mut().insert(principal);
    next.run(request).await
}

/// Returns the token in `Bearer TOKEN`; the scheme is case-insensitive (RFC 9110, section 11.1).
fn bearer(header: &HeaderValue) -> Option<&str> {
    let (scheme, token) = header.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn refused(has_token: bool) -> Response {
    let message = if has_token { "invalid bearer token" } else { "missing bearer token" };
    let mut response = refuse(StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized, message);
    response.headers_mut().insert(WWW_AUTHENTICATE, if has_token { INVALID_TOKEN } else { MISSING_TOKEN });
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bearer_scheme_is_case_insensitive() {
        let found = |text: &'static str| bearer(&HeaderValue::from_static(text)).map(str::to_owned);
        assert_eq!(found("Bearer abc").unwrap(), "abc");
        assert_eq!(found("bearer  abc").unwrap(), "abc");
        for other in ["", "Bearer", "abc", "Basic abc"] {
            assert_eq!(found(other), None, "{other}");
        }
    }
}
