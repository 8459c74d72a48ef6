// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Who sends a request: whoever can reach a server without tokens, and the principal of the bearer token otherwise.

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

use super::refusal::refuse;
use crate::{
    domain::{principal::Principal, tokens::Tokens},
    error_code::ErrorCode,
};

/// The tokens as they are now; none if everybody may come in.
pub type TokensNow = Option<watch::Receiver<Arc<Tokens>>>;

/// RFC 6750: what to show, and that what was shown is not right.
const NO_TOKEN: HeaderValue = HeaderValue::from_static("Bearer realm=\"waggle\"");
const WRONG_TOKEN: HeaderValue = HeaderValue::from_static("Bearer realm=\"waggle\", error=\"invalid_token\"");

/// Lets a request pass with its principal, or asks for a token. The token goes no further than here.
pub(super) async fn authenticate(State(tokens): State<TokensNow>, mut request: Request, next: Next) -> Response {
    let shown = request.headers_mut().remove(AUTHORIZATION);
    let principal = match &tokens {
        None => Principal::anonymous(),
        Some(tokens) => {
            let tokens = Arc::clone(&tokens.borrow());
            match shown.as_ref().and_then(bearer).and_then(|token| tokens.principal(token)) {
                Some(principal) => principal.clone(),
                None => return refused(shown.is_some()),
            }
        }
    };
    request.extensions_mut().insert(principal);
    next.run(request).await
}

/// The token of `Bearer TOKEN`; the scheme's case does not matter (RFC 9110, section 11.1).
fn bearer(header: &HeaderValue) -> Option<&str> {
    let (scheme, token) = header.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn refused(was_shown: bool) -> Response {
    let message = if was_shown { "the bearer token is not one of this server's" } else { "a bearer token is needed" };
    let mut response = refuse(StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized, message);
    response.headers_mut().insert(WWW_AUTHENTICATE, if was_shown { WRONG_TOKEN } else { NO_TOKEN });
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bearer_token_is_found_whatever_the_scheme_s_case() {
        let found = |text: &'static str| bearer(&HeaderValue::from_static(text)).map(str::to_owned);
        assert_eq!(found("Bearer abc").unwrap(), "abc");
        assert_eq!(found("bearer  abc").unwrap(), "abc");
        for other in ["", "Bearer", "abc", "Basic abc"] {
            assert_eq!(found(other), None, "{other}");
        }
    }
}
