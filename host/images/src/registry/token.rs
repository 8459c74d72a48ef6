// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Requests tokens from a registry's token service, as described in the documentation of the registry software
//! "distribution" ("Token Authentication", "OAuth2").
//!
//! The registry's challenge contains the URL of the token service, which is called the realm. Plain HTTP to the realm
//! is allowed only if the registry and the realm may both be reached without TLS. With credentials, the realm must be
//! on the registry's site.

use reqwest::{StatusCode, Url};
use secrecy::{ExposeSecret as _, SecretString};

use super::{
    RegistryFault, Target,
    credential::Credential,
    document::{DOCUMENT_TIMEOUT, read_bounded},
    reach::Reach,
};

/// Maximum bytes of a token response. Tokens with many scopes have some KiB.
const TOKEN_BYTES_MAX: u64 = 256 * 1024;

/// Requests a token from the token service at `realm`. The token allows pulls of the target's repository.
pub(super) async fn fetch(
    http: &reqwest::Client,
    reach: &Reach,
    target: &Target,
    realm: &str,
    service: Option<&str>,
) -> Result<SecretString, RegistryFault> {
    let url = realm_url(reach, target, realm)?;
    let scope = format!("repository:{}:pull", target.reference.repository());
    let mut fields = vec![("scope", scope.as_str())];
    fields.extend(service.map(|service| ("service", service)));
    let request = match &target.credential {
        Credential::None | Credential::Withheld => http.get(url).query(&fields),
        Credential::Password { user, password } => {
            http.get(url).query(&fields).basic_auth(user.expose_secret(), Some(password.expose_secret()))
        }
        Credential::IdentityToken(token) => {
            fields.extend([("grant_type", "refresh_token"), ("client_id", "waggle")]);
            fields.push(("refresh_token", token.expose_secret()));
            http.post(url).form(&fields)
        }
    };
    let sent = request.timeout(DOCUMENT_TIMEOUT).send().await;
    let response = sent.map_err(|fault| RegistryFault::request_failed(&target.registry, fault))?;
    match response.status() {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => return Err(target.unauthorized()),
        status => return Err(RegistryFault::Status { registry: target.registry.clone(), what: "a token", status }),
    }
    let content =
        read_bounded(response, TOKEN_BYTES_MAX).await.map_err(|fault| fault.of(&target.registry, "a token"))?;
    parse(&content).ok_or_else(|| RegistryFault::NoToken { registry: target.registry.clone() })
}

/// Parses the realm's URL. Fails if the token request must not be sent to this URL.
fn realm_url(reach: &Reach, target: &Target, realm: &str) -> Result<Url, RegistryFault> {
    let fault = || RegistryFault::Realm { registry: target.registry.clone(), realm: realm.chars().take(200).collect() };
    let url = Url::parse(realm).map_err(|_| fault())?;
    let safe = reach.allows_redirect(&target.base, &url);
    let own = matches!(target.credential, Credential::None | Credential::Withheld) || same_site(&target.base, &url);
    if safe && own && url.username().is_empty() && url.password().is_none() { Ok(url) } else { Err(fault()) }
}

/// Returns whether two hosts are equal or share the last two labels of their names, for example `index.docker.io` and
/// `auth.docker.io`.
fn same_site(one: &Url, other: &Url) -> bool {
    let (Some(one), Some(other)) = (one.host_str(), other.host_str()) else { return false };
    let site = |host: &str| {
        let parts: Vec<_> = host.rsplitn(3, '.').take(2).map(str::to_owned).collect();
        let is_address = host.starts_with('[') || host.parse::<std::net::Ipv4Addr>().is_ok();
        (parts.len() == 2 && !is_address).then_some(parts)
    };
    one == other || site(one).is_some_and(|one| Some(one) == site(other))
}

/// Returns the token in a response of the token service. Returns `None` if the token is missing, or contains characters
/// that are not allowed in an HTTP header.
fn parse(content: &[u8]) -> Option<SecretString> {
    #[derive(serde::Deserialize)]
    struct Response {
        token: Option<SecretString>,
        access_token: Option<SecretString>,
    }
    let response: Response = serde_json::from_slice(content).ok()?;
    let token = response.token.filter(|token| !token.expose_secret().is_empty()).or(response.access_token)?;
    let shown = token.expose_secret();
    (!shown.is_empty() && shown.bytes().all(|byte| byte.is_ascii_graphic())).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{reference::PullRights, registry::PlainHosts};

    fn check(registry: &str, credential: Credential, realm: &str) -> bool {
        let scheme = if registry.starts_with("localhost") { "http" } else { "https" };
        let target = Target {
            reference: format!("{registry}/a/b").parse().unwrap(),
            registry: registry.to_owned(),
            base: Url::parse(&format!("{scheme}://{registry}/v2/")).unwrap(),
            credential,
        };
        let rights =
            if matches!(target.credential, Credential::Withheld) { PullRights::Public } else { PullRights::Operator };
        realm_url(&Reach::new(rights, PlainHosts::default()), &target, realm).is_ok()
    }

    #[test]
    fn password_is_sent_only_encrypted_and_to_the_registrys_site() {
        let password = || Credential::Password { user: "u".into(), password: "p".into() };
        for (registry, realm, allowed) in [
            ("index.docker.io", "https://auth.docker.io/token", true),
            ("ghcr.io", "https://ghcr.io/token", true),
            ("registry.gitlab.com", "https://gitlab.com/jwt/auth", true),
            ("localhost:5000", "http://localhost:5001/token", true),
            ("ghcr.io", "http://ghcr.io/token", false),
            ("ghcr.io", "https://evil.example/token", false),
            ("ghcr.io", "https://ghcr.io.evil.example/token", false),
            ("10.0.0.1:5000", "https://11.0.0.1/token", false),
            ("10.0.0.1:5000", "https://10.0.0.1:9/token", true),
            ("localhost:5000", "https://evil.example/token", false),
            ("ghcr.io", "ftp://ghcr.io/token", false),
            ("ghcr.io", "https://u@ghcr.io/token", false),
            ("ghcr.io", "nowhere", false),
        ] {
            assert_eq!(check(registry, password(), realm), allowed, "{registry} {realm}");
        }
    }

    #[test]
    fn any_encrypted_realm_is_allowed_without_credentials() {
        assert!(check("ghcr.io", Credential::None, "https://tokens.example/"));
        assert!(!check("ghcr.io", Credential::None, "http://tokens.example/"));
    }

    #[test]
    fn realm_of_a_clients_image_is_at_a_public_address() {
        assert!(check("ghcr.io", Credential::Withheld, "https://tokens.example/"));
        for realm in ["https://10.0.0.1/token", "https://127.0.0.1/token", "http://tokens.example/", "https://[::1]/"] {
            assert!(!check("ghcr.io", Credential::Withheld, realm), "{realm}");
        }
    }

    #[test]
    fn rejects_tokens_that_are_missing_or_invalid_in_headers() {
        let parse = |content| parse(content).map(|token| token.expose_secret().to_owned());
        assert_eq!(parse(br#"{"token":"a.b","access_token":"c"}"#).as_deref(), Some("a.b"));
        assert_eq!(parse(br#"{"token":"","access_token":"c"}"#).as_deref(), Some("c"));
        for content in [&br#"{"token":"a\r\nb"}"#[..], b"{}", b"[]", br#"{"token":7}"#, br#"{"token":"a b"}"#] {
            assert_eq!(parse(content), None);
        }
    }
}
