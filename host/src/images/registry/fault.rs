// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What goes wrong with registries, and what to do about it.

use std::{error::Error, io, time::Duration};

use oci_client::errors::{OciEnvelope, OciErrorCode};
use reqwest::StatusCode;

use crate::causes::chain;

/// Characters of what a registry says that an error repeats.
const SAID_CHARS_MAX: usize = 300;

/// An image could not be pulled.
#[derive(Debug, thiserror::Error)]
pub enum RegistryFault {
    /// No client can be made.
    #[error("failed to prepare for TLS; a host that pulls images needs CA certificates (the package ca-certificates)")]
    Tls {
        /// Why.
        source: reqwest::Error,
    },
    /// A name that no URL can hold.
    #[error("{registry} is not a registry's address")]
    Address {
        /// The name.
        registry: String,
    },
    /// Nobody answers.
    #[error(
        "failed to reach the registry {registry}; check its name, the network, and HTTPS_PROXY where a proxy is needed, or \
         copy the image to a folder where the registry can be reached (skopeo copy docker://IMAGE oci:DIR:latest) and \
         name it as oci:DIR"
    )]
    Unreachable {
        /// Its name.
        registry: String,
        /// What happened.
        source: reqwest::Error,
    },
    /// Somebody answers, who cannot show to be it.
    #[error(
        "the certificate of the registry {registry} is not trusted; if an authority of your own has issued it, add that \
         authority to the system's certificates (in Debian: /usr/local/share/ca-certificates, update-ca-certificates), or \
         name a file with all certificates to trust in SSL_CERT_FILE"
    )]
    Untrusted {
        /// Its name.
        registry: String,
        /// What is wrong with the certificate.
        source: reqwest::Error,
    },
    /// Not without credentials, or not with these.
    #[error(
        "{registry} does not let us pull {image}, and {credentials}; check the image's name, or log in with \
         `docker login {registry}` or `podman login {registry}` as the user that runs waggle"
    )]
    Unauthorized {
        /// The reference.
        image: String,
        /// The registry.
        registry: String,
        /// What was known.
        credentials: &'static str,
    },
    /// No such image.
    #[error("the registry has no image {image}; check its name and tag")]
    NotFound {
        /// The reference.
        image: String,
    },
    /// The registry names somebody else to send credentials to.
    #[error(
        "{registry} wants its credentials sent to {realm:?}, which is another site or not safe; they were not sent"
    )]
    Realm {
        /// The registry.
        registry: String,
        /// Where to.
        realm: String,
    },
    /// A token that is none.
    #[error("{registry} sent us for a token, and got none that can be used")]
    NoToken {
        /// The registry.
        registry: String,
    },
    /// An answer without meaning.
    #[error("{registry} answered {status} when asked for {what}")]
    Status {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: &'static str,
        /// Its answer.
        status: StatusCode,
    },
    /// It is no image.
    #[error("failed to understand what the registry has as {image}")]
    NoImage {
        /// The reference.
        image: String,
        /// What is wrong.
        source: Box<dyn Error + Send + Sync>,
    },
    /// More than there may be.
    #[error("{registry} sent {what} of more than {bytes_max} bytes")]
    TooLarge {
        /// The registry.
        registry: String,
        /// What it is.
        what: &'static str,
        /// Bytes there may be.
        bytes_max: u64,
    },
    /// The content is not the one that was asked for.
    #[error("{registry} sent something else than what has the digest {digest}")]
    Corrupt {
        /// The registry.
        registry: String,
        /// The digest asked for.
        digest: String,
    },
    /// A download that does not get on.
    #[error("{registry} sent fewer than {bytes_min} bytes within {} s", super::blob::RATE_WINDOW.as_secs())]
    Stalled {
        /// The registry.
        registry: String,
        /// What would have been enough.
        bytes_min: u64,
    },
    /// A download that gets on, and is not over in time.
    #[error("{registry} had not sent all {bytes} bytes of a blob after {} s", within.as_secs())]
    Slow {
        /// The registry.
        registry: String,
        /// The blob's size.
        bytes: u64,
        /// How long it had.
        within: Duration,
    },
    /// The registry's own word.
    #[error("{registry} said no: {said}")]
    Said {
        /// The registry.
        registry: String,
        /// What it said, cut to what fits on a line.
        said: String,
        /// Whether it may say something else later.
        passing: bool,
        /// Whether it wants to see other credentials.
        unauthorized: bool,
    },
    /// This machine's disk.
    #[error("failed to write the blob {digest}")]
    Write {
        /// Its digest.
        digest: String,
        /// Why.
        source: io::Error,
    },
}

impl RegistryFault {
    /// From a request that got no answer.
    pub(super) fn no_answer(registry: &str, fault: reqwest::Error) -> Self {
        let (registry, source) = (registry.to_owned(), fault.without_url());
        if is_untrusted(&source) {
            Self::Untrusted { registry, source }
        } else {
            Self::Unreachable { registry, source }
        }
    }

    /// From an answer that is no blob, and what it says.
    pub(super) fn refused(registry: &str, status: StatusCode, content: &[u8]) -> Self {
        let envelope: Option<OciEnvelope> = serde_json::from_slice(content).ok();
        let errors = envelope.iter().flat_map(|envelope| &envelope.errors);
        let busy = status.is_server_error()
            || [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS].contains(&status)
            || errors.into_iter().any(|error| error.code == OciErrorCode::Toomanyrequests);
        let said = envelope.map_or_else(|| String::from_utf8_lossy(content).into_owned(), |known| known.to_string());
        let unauthorized = status == StatusCode::UNAUTHORIZED;
        let fault = io::Error::other(format!("{status}: {said}").trim_end_matches(": "));
        Self::said(registry, &fault, busy || unauthorized, unauthorized)
    }

    /// A stream that broke.
    pub(super) fn cut(registry: &str, fault: &dyn Error) -> Self {
        Self::said(registry, fault, true, false)
    }

    fn said(registry: &str, fault: &dyn Error, passing: bool, unauthorized: bool) -> Self {
        let said = chain(fault).chars().filter(|c| !c.is_control()).take(SAID_CHARS_MAX).collect();
        Self::Said { registry: registry.to_owned(), said, passing, unauthorized }
    }

    /// Whether the same request may work a moment later.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { source, .. } => !source.is_redirect(),
            Self::Stalled { .. } => true,
            Self::Said { passing, .. } => *passing,
            Self::Status { status, .. } => status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS,
            Self::Tls { .. }
            | Self::Untrusted { .. }
            | Self::Address { .. }
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

/// Whether there was TLS, with a certificate that does not do.
fn is_untrusted(fault: &(dyn Error + 'static)) -> bool {
    let mut next = Some(fault);
    while let Some(fault) = next {
        if let Some(rustls::Error::InvalidCertificate(_)) = fault.downcast_ref() {
            return true;
        }
        // Asked for its source, an I/O error passes over what it holds.
        let held = fault.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = held.map(|held| held as &(dyn Error + 'static)).or_else(|| fault.source());
    }
    false
}
