// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The authentication that a registry requires: none, a password, or a token.

use http_auth::parser::ChallengeParser;
use reqwest::{StatusCode, Url, header::WWW_AUTHENTICATE};

use super::{Registries, RegistryFault, document::DOCUMENT_TIMEOUT};

#[derive(Debug, Eq, PartialEq)]
pub(super) enum Challenge {
    None,
    Basic,
    Bearer { realm: String, service: Option<String> },
}

impl Registries {
    /// Returns the registry's base URL and challenge. HTTPS is tried first. Plain HTTP is tried only if it is allowed
    /// and the registry was unreachable over HTTPS; an untrusted certificate ends the attempt.
    pub(super) async fn challenge(&self, registry: &str) -> Result<(Url, Challenge), RegistryFault> {
        let mut answer = self.probe("https", registry).await;
        if self.reach.allows_plain(registry)
            && let Err(RegistryFault::Unreachable { .. }) = answer
        {
            answer = self.probe("http", registry).await;
        }
        answer
    }

    async fn probe(&self, scheme: &str, registry: &str) -> Result<(Url, Challenge), RegistryFault> {
        let base = Url::parse(&format!("{scheme}://{registry}/v2/"))
            .map_err(|_| RegistryFault::Address { registry: registry.to_owned() })?;
        if !self.reach.allows(&base) {
            return Err(RegistryFault::NotPublic { registry: registry.to_owned() });
        }
        let sent = self.http()?.get(base.clone()).timeout(DOCUMENT_TIMEOUT).send().await;
        let response = sent.map_err(|fault| RegistryFault::request_failed(registry, fault))?;
        // After a redirect to another origin, the challenge of that origin is ignored.
        let own = response.url().origin() == base.origin();
        if !own || response.status() != StatusCode::UNAUTHORIZED {
            return Ok((base, Challenge::None));
        }
        let headers = response.headers().get_all(WWW_AUTHENTICATE);
        let challenges: Vec<_> = headers.iter().filter_map(|value| value.to_str().ok()).collect();
        Ok((base, choose(&challenges)))
    }
}

/// Chooses a challenge. A token is preferred to a password, and a password to no authentication.
fn choose(headers: &[&str]) -> Challenge {
    let all = || headers.iter().flat_map(|header| ChallengeParser::new(header)).filter_map(Result::ok);
    let parameter = |challenge: &http_auth::ChallengeRef<'_>, name: &str| {
        let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.to_unescaped())
    };
    let bearer = all().filter(|challenge| challenge.scheme.eq_ignore_ascii_case("bearer")).find_map(|challenge| {
        let realm = parameter(&challenge, "realm")?;
        Some(Challenge::Bearer { realm, service: parameter(&challenge, "service") })
    });
    let basic = || all().any(|challenge| challenge.scheme.eq_ignore_ascii_case("basic")).then_some(Challenge::Basic);
    bearer.or_else(basic).unwrap_or(Challenge::None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefers_a_token_and_ignores_invalid_challenges() {
        let bearer = Challenge::Bearer { realm: "https://a/t".to_owned(), service: Some("s".to_owned()) };
        assert_eq!(choose(&["Basic realm=\"x\"", "Bearer realm=\"https://a/t\",service=\"s\""]), bearer);
        assert_eq!(choose(&["Basic realm=\"x\", Bearer realm=\"https://a/t\", service=s"]), bearer);
        assert_eq!(choose(&["Basic realm=\"x\""]), Challenge::Basic);
        assert_eq!(choose(&["Bearer service=\"s\""]), Challenge::None);
        assert_eq!(choose(&["=,=", "Negotiate"]), Challenge::None);
        assert_eq!(choose(&[]), Challenge::None);
    }
}
