// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Errors of pulling from a registry, with advice.

use std::{error::Error, io, time::Duration};

use oci_client::errors::{OciEnvelope, OciErrorCode};
use reqwest::StatusCode;
use waggle_shared::{causes::chain, printable};

/// Maximum number of bytes of a registry's message that an error quotes.
const MESSAGE_BYTES_MAX: usize = 300;

/// An image could not be pulled.
#[derive(Debug, thiserror::Error)]
pub enum RegistryFault {
    #[error("failed to prepare for TLS; a host that pulls images needs CA certificates (the package ca-certificates)")]
    Tls { source: reqwest::Error },
    /// The registry's name is invalid in a URL.
    #[error("invalid registry {registry:?}; must be HOST or HOST:PORT")]
    Address { registry: String },
    /// The registry of an image that the operator does not name has an address that is not public.
    #[error(
        "the registry {registry} has no public address; only images that WAGGLE_ALLOWED_IMAGES names may come from \
         other addresses"
    )]
    NotPublic { registry: String },
    #[error(
        "failed to reach the registry {registry}; check its name, the network, and HTTPS_PROXY if a proxy is needed, \
         or copy the image into a folder on a machine that can reach the registry (skopeo copy docker://IMAGE \
         oci:DIR:latest), move the folder here, and use oci:DIR as the image"
    )]
    Unreachable { registry: String, source: reqwest::Error },
    #[error(
        "the certificate of the registry {registry} is not trusted; if your own authority issued it, add the \
         authority's certificate to the system's certificates (in Debian: copy it to \
         /usr/local/share/ca-certificates and run update-ca-certificates), or set SSL_CERT_FILE to a file with all \
         trusted certificates"
    )]
    Untrusted { registry: String, source: reqwest::Error },
    #[error(
        "{registry} denied the pull of {image}, and {credentials}; check the image's name, or log in with \
         `docker login {registry}` or `podman login {registry}` as the user that runs waggle"
    )]
    Unauthorized { image: String, registry: String, credentials: &'static str },
    #[error("the registry has no image {image}; check its name and tag")]
    NotFound { image: String },
    #[error(
        "{registry} uses the token service {realm:?}, which is on another site or not encrypted; no credentials were \
         sent there"
    )]
    Realm { registry: String, realm: String },
    #[error("the token service of {registry} returned no valid token")]
    NoToken { registry: String },
    #[error("{registry} responded with {status} to a request for {what}")]
    Status { registry: String, what: &'static str, status: StatusCode },
    #[error("failed to parse the manifest of {image}")]
    NoImage { image: String, source: Box<dyn Error + Send + Sync> },
    #[error("{registry} sent {what} of more than {bytes_max} bytes")]
    TooLarge { registry: String, what: &'static str, bytes_max: u64 },
    #[error("{registry} sent content that does not match the digest {digest}")]
    Corrupt { registry: String, digest: String },
    #[error("{registry} sent fewer than {bytes_min} bytes within {} s", super::blob::RATE_WINDOW.as_secs())]
    Stalled { registry: String, bytes_min: u64 },
    #[error("{registry} did not send all {bytes} bytes of a blob within {} s", limit.as_secs())]
    Slow { registry: String, bytes: u64, limit: Duration },
    /// A request for a blob was rejected, or the download of a blob was interrupted.
    #[error("{registry} failed to send a blob: {message}")]
    Blob {
        registry: String,
        /// The error's text, cut to `MESSAGE_BYTES_MAX` bytes.
        message: String,
        retryable: bool,
        /// Whether a new token may help.
        unauthorized: bool,
    },
    #[error("failed to write the blob {digest}")]
    Write { digest: String, source: io::Error },
}

impl RegistryFault {
    /// Returns the fault of a request without a response.
    pub(super) fn request_failed(registry: &str, fault: reqwest::Error) -> Self {
        let (registry, source) = (registry.to_owned(), fault.without_url());
        if is_untrusted(&source) {
            Self::Untrusted { registry, source }
        } else {
            Self::Unreachable { registry, source }
        }
    }

    /// Returns the fault of an error response to a request for a blob.
    pub(super) fn bad_status(registry: &str, status: StatusCode, content: &[u8]) -> Self {
        let envelope: Option<OciEnvelope> = serde_json::from_slice(content).ok();
        let errors = envelope.iter().flat_map(|envelope| &envelope.errors);
        let busy = status.is_server_error()
            || [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS].contains(&status)
            || errors.into_iter().any(|error| error.code == OciErrorCode::Toomanyrequests);
        let message = envelope.map_or_else(|| String::from_utf8_lossy(content).into_owned(), |known| known.to_string());
        let unauthorized = status == StatusCode::UNAUTHORIZED;
        let fault = io::Error::other(format!("{status}: {message}").trim_end_matches(": "));
        Self::blob(registry, &fault, busy || unauthorized, unauthorized)
    }

    /// Returns the fault of a download that ended early.
    pub(super) fn interrupted(registry: &str, fault: &dyn Error) -> Self {
        Self::blob(registry, fault, true, false)
    }

    fn blob(registry: &str, fault: &dyn Error, retryable: bool, unauthorized: bool) -> Self {
        let message = printable::text(&chain(fault), MESSAGE_BYTES_MAX);
        Self::Blob { registry: registry.to_owned(), message, retryable, unauthorized }
    }

    /// Returns whether the same request may succeed later.
    pub(super) fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { source, .. } => !source.is_redirect(),
            Self::Stalled { .. } => true,
            Self::Blob { retryable, .. } => *retryable,
            Self::Status { status, .. } => status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS,
            Self::Tls { .. }
            | Self::Untrusted { .. }
            | Self::Address { .. }
            | Self::NotPublic { .. }
            | Self::Unauthorized { .. }
            | Self::NotFound { .. }
            | Self::Realm { .. }
            | Self::NoToken { .. }
            | Self::NoImage { .. }
            | Self::TooLarge { .. }
            | Self::Corrupt { .. }
            | Self::Slow { .. }
            | Self::Write { .. } => false,
        }
    }
}

/// Returns whether an invalid certificate caused the fault.
fn is_untrusted(fault: &(dyn Error + 'static)) -> bool {
    let mut next = Some(fault);
    while let Some(fault) = next {
        if let Some(rustls::Error::InvalidCertificate(_)) = fault.downcast_ref() {
            return true;
        }
        // `source()` of an I/O error skips the wrapped error, but `get_ref()` returns it.
        let held = fault.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = held.map(|held| held as &(dyn Error + 'static)).or_else(|| fault.source());
    }
    false
}
