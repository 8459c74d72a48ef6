// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Fetches manifests and indexes into memory, within limits. A document that is requested by digest is verified.

use std::{error::Error, time::Duration};

use oci_spec::image::{Descriptor, Digest, MediaType};
use reqwest::{
    Response, StatusCode,
    header::{ACCEPT, CONTENT_TYPE},
};

use super::{RegistryFault, Session};
use crate::merge::{DOCUMENT_BYTES_MAX, Hasher, accepted_types, media_type_of};

/// Timeout of a request for a small response: a manifest, a token or a challenge.
pub(super) const DOCUMENT_TIMEOUT: Duration = Duration::from_secs(60);

/// A manifest or an index.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) descriptor: Descriptor,
    pub(crate) content: Vec<u8>,
}

/// A response could not be read.
#[derive(Debug)]
pub(super) enum ReadFault {
    TooLarge { bytes_max: u64 },
    Interrupted(reqwest::Error),
}

impl ReadFault {
    pub(super) fn of(self, registry: &str, what: &'static str) -> RegistryFault {
        let registry = registry.to_owned();
        match self {
            Self::TooLarge { bytes_max } => RegistryFault::TooLarge { registry, what, bytes_max },
            Self::Interrupted(source) => RegistryFault::Unreachable { registry, source: source.without_url() },
        }
    }
}

/// Reads a response into memory. Fails if the response is longer than `bytes_max`.
pub(super) async fn read_bounded(mut response: Response, bytes_max: u64) -> Result<Vec<u8>, ReadFault> {
    let too_large = || ReadFault::TooLarge { bytes_max };
    if response.content_length().is_some_and(|bytes| bytes > bytes_max) {
        return Err(too_large());
    }
    let mut content = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(ReadFault::Interrupted)? {
        if (content.len() as u64).saturating_add(chunk.len() as u64) > bytes_max {
            return Err(too_large());
        }
        content.extend_from_slice(&chunk);
    }
    Ok(content)
}

impl Session<'_> {
    /// Fetches the image's manifest or index, by digest if the reference has one, otherwise by tag.
    pub(crate) async fn top(&self) -> Result<Document, RegistryFault> {
        let reference = &self.target.reference;
        match reference.digest() {
            Some(digest) => {
                let wanted = digest.parse::<Digest>().map_err(|fault| self.not_image(fault))?;
                self.manifest(digest, Some(&wanted)).await
            }
            None => self.manifest(reference.tag().unwrap_or("latest"), None).await,
        }
    }

    /// Fetches the manifest or index with this digest.
    pub(crate) async fn by_digest(&self, digest: &Digest) -> Result<Document, RegistryFault> {
        self.manifest(digest.as_ref(), Some(digest)).await
    }

    async fn manifest(&self, name: &str, digest: Option<&Digest>) -> Result<Document, RegistryFault> {
        let registry = &self.target.registry;
        let response = self.request(name).await?;
        let header = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let content =
            read_bounded(response, DOCUMENT_BYTES_MAX).await.map_err(|fault| fault.of(registry, "a manifest"))?;
        let media_type = media_type_of(&content, header.as_deref()).map_err(|fault| self.not_image(fault))?;
        let digest = check(&content, digest).ok_or_else(|| RegistryFault::Corrupt {
            registry: registry.clone(),
            digest: digest.map(ToString::to_string).unwrap_or_default(),
        })?;
        let descriptor = Descriptor::new(MediaType::from(media_type.as_str()), content.len() as u64, digest);
        Ok(Document { descriptor, content })
    }

    fn not_image(&self, source: impl Error + Send + Sync + 'static) -> RegistryFault {
        RegistryFault::NoImage { image: self.target.reference.to_string(), source: Box::new(source) }
    }

    async fn request(&self, name: &str) -> Result<Response, RegistryFault> {
        let registry = &self.target.registry;
        let request = self.get("manifests", name).await?.header(ACCEPT, accepted_types()).timeout(DOCUMENT_TIMEOUT);
        let response = request.send().await.map_err(|fault| RegistryFault::request_failed(registry, fault))?;
        match response.status() {
            StatusCode::OK => Ok(response),
            StatusCode::NOT_FOUND => Err(RegistryFault::NotFound { image: self.target.reference.to_string() }),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(self.target.unauthorized()),
            status => Err(RegistryFault::Status { registry: registry.clone(), what: "a manifest", status }),
        }
    }
}

/// Returns the content's digest, or `None` if the digest differs from `wanted`.
fn check(content: &[u8], wanted: Option<&Digest>) -> Option<Digest> {
    let by_default: Digest = format!("sha256:{}", "0".repeat(64)).parse().ok()?;
    let mut hasher = Hasher::of(wanted.unwrap_or(&by_default))?;
    hasher.update(content);
    let hex = hasher.finish();
    match wanted {
        Some(wanted) => (hex == wanted.digest()).then(|| wanted.clone()),
        None => format!("sha256:{hex}").parse().ok(),
    }
}
