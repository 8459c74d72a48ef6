// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The registry client.
//!
//! ```text
//!  connect ─ challenge ─ credentials ─ token ─┬─ manifests: read into memory, within limits
//!                                             └─ blobs: streamed, resumed, verified by their digests
//! ```
//!
//! One HTTP client sends all requests, so this module alone limits responses, checks redirects, and chooses the hosts
//! that receive a password. The crate `oci-client` only parses references and the error documents of registries; it
//! sends no requests.

mod blob;
mod challenge;
mod credential;
mod credential_files;
mod credential_helper;
mod document;
mod fault;
mod plain;
mod reach;
mod token;

use std::{path::PathBuf, sync::OnceLock, time::Duration};

use oci_client::Reference;
use reqwest::{RequestBuilder, Url, redirect};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::{RwLock, Semaphore};

use self::{challenge::Challenge, credential::Credential, reach::Reach};
pub use self::{fault::RegistryFault, plain::PlainHosts};
use crate::reference::{PullRights, RegistryRef};

/// Timeout of a connection attempt. TCP and TLS handshakes take less time, even over slow networks.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum time that a registry may send nothing. Slow registries start to respond after a second or two.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum number of redirects of one request. Registries need one redirect.
const REDIRECTS_MAX: usize = 5;

const USER_AGENT: &str = concat!("waggle/", env!("CARGO_PKG_VERSION"));

/// Settings of the registry client.
#[derive(Clone, Debug, Default)]
pub struct RegistrySettings {
    /// Registries that may be reached without TLS, in addition to those on this machine.
    pub plain: PlainHosts,
    /// Files with credentials. The first file with an entry for a registry wins.
    pub auth_files: Vec<PathBuf>,
}

/// A client for all registries, with the same rights at each.
#[derive(Debug)]
pub(super) struct Registries {
    auth_files: Vec<PathBuf>,
    reach: Reach,
    http: OnceLock<reqwest::Client>,
    downloads: Semaphore,
}

impl Registries {
    pub(super) fn new(settings: RegistrySettings, rights: PullRights) -> Self {
        let reach = Reach::new(rights, settings.plain);
        Self { auth_files: settings.auth_files, http: OnceLock::new(), downloads: reach.downloads(), reach }
    }

    /// Returns the HTTP client. The client is created at the first request and not earlier, because the creation fails
    /// on a host without CA certificates, and such a host can still use local images.
    fn http(&self) -> Result<&reqwest::Client, RegistryFault> {
        if let Some(http) = self.http.get() {
            return Ok(http);
        }
        let http = self.new_client()?;
        Ok(self.http.get_or_init(|| http))
    }

    fn new_client(&self) -> Result<reqwest::Client, RegistryFault> {
        // An error means that a crypto provider is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let reach = self.reach.clone();
        self.reach
            .restrict(reqwest::Client::builder())
            .user_agent(USER_AGENT)
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            // On a redirect to another host, reqwest removes the credentials.
            .redirect(redirect::Policy::custom(move |attempt| {
                if attempt.previous().len() > REDIRECTS_MAX {
                    return attempt.error("too many redirects");
                }
                if attempt.previous().first().is_some_and(|first| reach.allows_redirect(first, attempt.url())) {
                    return attempt.follow();
                }
                attempt.error(reach.redirect_refusal())
            }))
            .build()
            .map_err(|source| RegistryFault::Tls { source })
    }

    /// Finds the registry's scheme and challenge, and obtains a token if the registry requires one.
    pub(super) async fn connect(&self, image: &RegistryRef) -> Result<Session<'_>, RegistryFault> {
        let reference = image.reference().clone();
        let registry = reference.resolve_registry().to_owned();
        let (base, challenge) = self.challenge(&registry).await?;
        let credential = match self.reach.has_credentials() {
            true => credential_files::find(&registry, &self.auth_files).await,
            false => Credential::Withheld,
        };
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
                Credential::None | Credential::Withheld | Credential::IdentityToken(_) => Err(target.unauthorized()),
            },
            Challenge::Bearer { realm, service } => {
                token::fetch(self.http()?, &self.reach, target, &realm, service.as_deref()).await.map(Access::Token)
            }
        }
    }
}

/// The image to pull, and its registry.
#[derive(Debug)]
struct Target {
    reference: Reference,
    /// Host, and port if the reference has one.
    registry: String,
    /// `https://REGISTRY/v2/`, or `http://REGISTRY/v2/` if the registry is reached over plain HTTP.
    base: Url,
    credential: Credential,
}

impl Target {
    fn unauthorized(&self) -> RegistryFault {
        RegistryFault::Unauthorized {
            image: self.reference.to_string(),
            registry: self.registry.clone(),
            credentials: self.credential.describe(),
        }
    }
}

/// Authorization to pull one image.
#[derive(Clone, Debug)]
enum Access {
    Anonymous,
    Token(SecretString),
    Password { user: SecretString, password: SecretString },
}

/// The access of one pull to its registry.
#[derive(Debug)]
pub(super) struct Session<'a> {
    registries: &'a Registries,
    target: Target,
    access: RwLock<Access>,
}

impl Session<'_> {
    /// Renews the access, because a token is valid for only a few minutes, and a pull can take longer.
    async fn renew(&self) -> Result<(), RegistryFault> {
        let (_, challenge) = self.registries.challenge(&self.target.registry).await?;
        let access = self.registries.access(&self.target, challenge).await?;
        *self.access.write().await = access;
        Ok(())
    }

    /// Builds a request for a manifest or a blob of the image; `kind` is `manifests` or `blobs`.
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
    fn debug_output_hides_secrets() {
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
