// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Registries: what is asked of them, and how far they are trusted.
//!
//! ```text
//!  connect ─ challenge ─ credentials ─ token ─┬─ manifests: small, read here, within limits
//!                                             └─ blobs: streamed, resumed, verified by their digests
//! ```
//!
//! Everything is asked for by one client, with one answer to how much is read, where a registry may send us, and who
//! hears a password. The crate `oci-client` has the words of a registry's refusals.

mod blob;
mod challenge;
mod credential_helper;
mod credentials;
mod document;
mod fault;
mod plain;
mod token;

use std::{path::PathBuf, sync::OnceLock, time::Duration};

use oci_client::Reference;
use reqwest::{RequestBuilder, Url, redirect};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::{RwLock, Semaphore};

use self::{challenge::Challenge, credentials::Credential};
pub use self::{fault::RegistryFault, plain::PlainHosts};
use crate::domain::image::RegistryRef;

/// A registry that cannot be connected to by then is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Silence in the middle of an answer; slow registries begin to answer after a second or two.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// From hosts to hosts on the way to a document or a blob. Registries need one.
const REDIRECTS_MAX: usize = 5;

/// Blobs that are downloaded at once, by all pulls together: more do not come faster over one line.
const DOWNLOADS_AT_ONCE: usize = 6;

const USER_AGENT: &str = concat!("waggle/", env!("CARGO_PKG_VERSION"));

/// What an operator says about registries.
#[derive(Clone, Debug, Default)]
pub struct RegistrySettings {
    /// Registries that may be spoken to without TLS, besides those on this machine.
    pub plain: PlainHosts,
    /// Files with credentials, the first that has some for a registry wins.
    pub auth_files: Vec<PathBuf>,
}

/// The way to all registries.
#[derive(Debug)]
pub(super) struct Registries {
    settings: RegistrySettings,
    http: OnceLock<reqwest::Client>,
    downloads: Semaphore,
}

impl Registries {
    pub(super) fn new(settings: RegistrySettings) -> Self {
        Self { settings, http: OnceLock::new(), downloads: Semaphore::new(DOWNLOADS_AT_ONCE) }
    }

    /// The client, made when a registry is first asked for something: a host without any CA certificate has no use for
    /// it, and serves images of its own all the same.
    fn http(&self) -> Result<&reqwest::Client, RegistryFault> {
        if let Some(http) = self.http.get() {
            return Ok(http);
        }
        let http = self.new_client()?;
        Ok(self.http.get_or_init(|| http))
    }

    fn new_client(&self) -> Result<reqwest::Client, RegistryFault> {
        // Whoever was first has chosen the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let plain = self.settings.plain.clone();
        reqwest::Client::builder()
            .user_agent(USER_AGENT)
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            // Credentials do not go along to another host: reqwest takes them off.
            .redirect(redirect::Policy::custom(move |attempt| {
                if attempt.previous().len() > REDIRECTS_MAX {
                    return attempt.error("it redirects too often");
                }
                if attempt.previous().first().is_some_and(|asked| plain.may_lead(asked, attempt.url())) {
                    return attempt.follow();
                }
                attempt.error("it redirects to plain HTTP, or to an address of this machine or its wire")
            }))
            .build()
            .map_err(|source| RegistryFault::Tls { source })
    }

    /// Finds out how to speak to the image's registry, and gets the right to pull if that takes one.
    pub(super) async fn connect(&self, image: &RegistryRef) -> Result<Session<'_>, RegistryFault> {
        let reference = image.reference().clone();
        let registry = reference.resolve_registry().to_owned();
        let (base, challenge) = self.challenge(&registry).await?;
        let credential = credentials::find(&registry, &self.settings.auth_files).await;
        let target = Target { reference, registry, base, credential };
        let access = self.access(&target, challenge).await?;
        Ok(Session { registries: self, target, access: RwLock::new(access) })
    }

    async fn access(&self, target: &Target, challenge: Challenge) -> Result<Access, RegistryFault> {
        match challenge {
            Challenge::None => Ok(Access::Anonymous),
            Challenge::Basic => match &target.credential {
                Credential::Password { user, password } => {
                    Ok(Access::Password { user: user.clone(), password: password.clone() })
                }
                Credential::None | Credential::IdentityToken(_) => Err(target.unauthorized()),
            },
            Challenge::Bearer { realm, service } => {
                token::fetch(self.http()?, &self.settings.plain, target, &realm, service.as_deref())
                    .await
                    .map(Access::Token)
            }
        }
    }
}

/// What is pulled, and from where.
#[derive(Debug)]
struct Target {
    reference: Reference,
    /// Its host, and port if it has one.
    registry: String,
    /// `https://registry/v2/`, or `http:` where that may be.
    base: Url,
    credential: Credential,
}

impl Target {
    fn unauthorized(&self) -> RegistryFault {
        RegistryFault::Unauthorized {
            image: self.reference.to_string(),
            registry: self.registry.clone(),
            credentials: self.credential.told(),
        }
    }
}

/// The right to pull one image.
#[derive(Clone, Debug)]
enum Access {
    Anonymous,
    Token(SecretString),
    Password { user: SecretString, password: SecretString },
}

/// A pull's way to its registry.
#[derive(Debug)]
pub(super) struct Session<'a> {
    registries: &'a Registries,
    target: Target,
    access: RwLock<Access>,
}

impl Session<'_> {
    /// Gets the right to pull once more: tokens are good for some minutes, and an image can take longer.
    async fn renew(&self) -> Result<(), RegistryFault> {
        let (_, challenge) = self.registries.challenge(&self.target.registry).await?;
        let access = self.registries.access(&self.target, challenge).await?;
        *self.access.write().await = access;
        Ok(())
    }

    /// Asks for one of the image's `manifests` or `blobs`.
    async fn get(&self, kind: &str, name: &str) -> Result<RequestBuilder, RegistryFault> {
        let url = self.target.base.join(&format!("{}/{kind}/{name}", self.target.reference.repository()));
        let url = url.map_err(|_| RegistryFault::Address { registry: self.target.registry.clone() })?;
        let request = self.registries.http()?.get(url);
        Ok(match &*self.access.read().await {
            Access::Anonymous => request,
            Access::Token(token) => request.bearer_auth(token.expose_secret()),
            Access::Password { user, password } => {
                request.basic_auth(user.expose_secret(), Some(password.expose_secret()))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_right_to_pull_hides_its_secrets() {
        let secret = || SecretString::from("honey");
        let shown = [
            format!("{:#?}", Access::Token(secret())),
            format!("{:#?}", Access::Password { user: secret(), password: secret() }),
            format!("{:#?}", Credential::Password { user: secret(), password: secret() }),
            format!("{:#?}", Credential::IdentityToken(secret())),
        ];
        assert!(shown.iter().all(|text| text.contains("REDACTED") && !text.contains("honey")), "{shown:?}");
    }
}
