// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The token that a registry sends its visitors for, as distribution's "Token Authentication" and "OAuth2" describe it.
//!
//! The registry names the place, its realm. Credentials go there only if it is of the registry's own site and is spoken
//! to as safely as the registry itself; anybody else is asked without.

use reqwest::{StatusCode, Url};
use secrecy::{ExposeSecret as _, SecretString};

use super::{
    PlainHosts, RegistryFault, Target,
    credentials::Credential,
    document::{DOCUMENT_TIMEOUT, read_bounded},
};

/// Bytes of a token's document; tokens that name many rights reach some KiB.
const TOKEN_BYTES_MAX: u64 = 256 * 1024;

/// Asks the realm for a token to pull.
pub(super) async fn fetch(
    http: &reqwest::Client,
    plain: &PlainHosts,
    target: &Target,
    realm: &str,
    service: Option<&str>,
) -> Result<SecretString, RegistryFault> {
    let place = place(plain, target, realm)?;
    let scope = format!("repository:{}:pull", target.reference.repository());
    let mut fields = vec![("scope", scope.as_str())];
    fields.extend(service.map(|service| ("service", service)));
    let request = match &target.credential {
        Credential::None => http.get(place).query(&fields),
        Credential::Password { user, password } => {
            http.get(place).query(&fields).basic_auth(user.expose_secret(), Some(password.expose_secret()))
        }
        Credential::IdentityToken(token) => {
            fields.extend([("grant_type", "refresh_token"), ("client_id", "waggle")]);
            fields.push(("refresh_token", token.expose_secret()));
            http.post(place).form(&fields)
        }
    };
    let asked = request.timeout(DOCUMENT_TIMEOUT).send().await;
    let response = asked.map_err(|fault| RegistryFault::no_answer(&target.registry, fault))?;
    match response.status() {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => return Err(target.unauthorized()),
        status => return Err(RegistryFault::Status { registry: target.registry.clone(), what: "a token", status }),
    }
    let content =
        read_bounded(response, TOKEN_BYTES_MAX).await.map_err(|fault| fault.of(&target.registry, "a token"))?;
    parse(&content).ok_or_else(|| RegistryFault::NoToken { registry: target.registry.clone() })
}

/// The realm's address, if it may hear what would be sent there.
fn place(plain: &PlainHosts, target: &Target, realm: &str) -> Result<Url, RegistryFault> {
    let refused =
        || RegistryFault::Realm { registry: target.registry.clone(), realm: realm.chars().take(200).collect() };
    let url = Url::parse(realm).map_err(|_| refused())?;
    let safe = plain.may_lead(&target.base, &url);
    let own = matches!(target.credential, Credential::None) || same_site(&target.base, &url);
    if safe && own && url.username().is_empty() && url.password().is_none() { Ok(url) } else { Err(refused()) }
}

/// Whether two hosts are one, or share the last two parts of their names: `index.docker.io` and `auth.docker.io`.
fn same_site(one: &Url, other: &Url) -> bool {
    let (Some(one), Some(other)) = (one.host_str(), other.host_str()) else { return false };
    let site = |host: &str| {
        let parts: Vec<_> = host.rsplitn(3, '.').take(2).map(str::to_owned).collect();
        let is_address = host.starts_with('[') || host.parse::<std::net::Ipv4Addr>().is_ok();
        (parts.len() == 2 && !is_address).then_some(parts)
    };
    one == other || site(one).is_some_and(|one| Some(one) == site(other))
}

/// The token in a realm's answer, if it can be a header's value.
fn parse(content: &[u8]) -> Option<SecretString> {
    #[derive(serde::Deserialize)]
    struct Answer {
        token: Option<SecretString>,
        access_token: Option<SecretString>,
    }
    let answer: Answer = serde_json::from_slice(content).ok()?;
    let token = answer.token.filter(|token| !token.expose_secret().is_empty()).or(answer.access_token)?;
    let shown = token.expose_secret();
    (!shown.is_empty() && shown.bytes().all(|byte| byte.is_ascii_graphic())).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(registry: &str, credential: Credential, realm: &str) -> bool {
        let scheme = if registry.starts_with("localhost") { "http" } else { "https" };
        let target = Target {
            reference: format!("{registry}/a/b").parse().unwrap(),
            registry: registry.to_owned(),
            base: Url::parse(&format!("{scheme}://{registry}/v2/")).unwrap(),
            credential,
        };
        place(&PlainHosts::default(), &target, realm).is_ok()
    }

    #[test]
    fn a_password_goes_to_the_registrys_own_site_and_not_in_the_clear() {
        let password = || Credential::Password { user: "u".into(), password: "p".into() };
        for (registry, realm, may) in [
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
            assert_eq!(check(registry, password(), realm), may, "{registry} {realm}");
        }
    }

    #[test]
    fn without_a_password_any_safe_place_may_be_asked() {
        assert!(check("ghcr.io", Credential::None, "https://tokens.example/"));
        assert!(!check("ghcr.io", Credential::None, "http://tokens.example/"));
    }

    #[test]
    fn only_what_a_header_can_hold_is_a_token() {
        let parse = |content| parse(content).map(|token| token.expose_secret().to_owned());
        assert_eq!(parse(br#"{"token":"a.b","access_token":"c"}"#).as_deref(), Some("a.b"));
        assert_eq!(parse(br#"{"token":"","access_token":"c"}"#).as_deref(), Some("c"));
        for content in [&br#"{"token":"a\r\nb"}"#[..], b"{}", b"[]", br#"{"token":7}"#, br#"{"token":"a b"}"#] {
            assert_eq!(parse(content), None);
        }
    }
}
