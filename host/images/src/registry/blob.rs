// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Downloads blobs into files. A download is streamed and hashed, resumed after an interruption, and accepted only if
//! the digest matches.

use std::{
    error::Error,
    fs,
    io::{self, SeekFrom},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use oci_spec::image::Descriptor;
use reqwest::{Response, StatusCode, header::RANGE};
use tokio::{
    fs::File,
    io::{AsyncSeekExt as _, AsyncWriteExt as _},
    time::{Instant, sleep, timeout},
};

use super::{READ_TIMEOUT, RegistryFault, Session, document::read_bounded};
use crate::merge::Hasher;

/// Maximum number of consecutive tries without progress, for one blob.
const TRIES_MAX: u32 = 6;

/// A try makes progress if it extends the blob by at least this number of bytes.
const PROGRESS_BYTES_MIN: u64 = 1024 * 1024;

/// Delay before the second try. The delay doubles with each try; all delays together take 15.5 s.
const RETRY_DELAY: Duration = Duration::from_millis(500);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(10);

/// A download must receive `RATE_BYTES_MIN` in each window, because a slower download would occupy its permit too long.
pub(super) const RATE_WINDOW: Duration = Duration::from_secs(60);
const RATE_BYTES_MIN: u64 = 64 * 1024;

/// Fixed part of a blob's timeout. The timeout grows by one second per `BLOB_BYTES_PER_S` bytes. A blob of 1 GB takes
/// 2.2 hours at 1 Mbit/s, and has a timeout of 3 hours.
const BLOB_TIMEOUT_BASE: Duration = Duration::from_secs(15 * 60);
const BLOB_BYTES_PER_S: u64 = 100 * 1000;

/// Maximum bytes of an error response. Errors quote only the status of a longer response.
const ERROR_BYTES_MAX: u64 = 16 * 1024;

/// The part of a blob that has been written to its file.
struct Part {
    file: File,
    hasher: Hasher,
    bytes: u64,
}

impl Part {
    async fn restart(&mut self, descriptor: &Descriptor, received: &AtomicU64) -> Result<(), RegistryFault> {
        let fault = write_fault(descriptor);
        self.file.set_len(0).await.map_err(&fault)?;
        self.file.seek(SeekFrom::Start(0)).await.map_err(&fault)?;
        self.hasher = hasher(descriptor, "this machine")?;
        received.fetch_sub(self.bytes, Ordering::Relaxed);
        self.bytes = 0;
        Ok(())
    }
}

fn hasher(descriptor: &Descriptor, registry: &str) -> Result<Hasher, RegistryFault> {
    let digest = descriptor.digest();
    let corrupt = || RegistryFault::Corrupt { registry: registry.to_owned(), digest: digest.to_string() };
    Hasher::of(digest).ok_or_else(corrupt)
}

fn write_fault(descriptor: &Descriptor) -> impl Fn(io::Error) -> RegistryFault {
    let digest = descriptor.digest().to_string();
    move |source| RegistryFault::Write { digest: digest.clone(), source }
}

impl Session<'_> {
    /// Downloads a blob into an empty file. Adds the number of received bytes to `received`.
    pub(crate) async fn download(
        &self,
        descriptor: &Descriptor,
        file: fs::File,
        received: &AtomicU64,
    ) -> Result<(), RegistryFault> {
        // The semaphore is never closed.
        let _permit = self.registries.downloads.acquire().await.ok();
        let limit = BLOB_TIMEOUT_BASE.saturating_add(Duration::from_secs(descriptor.size() / BLOB_BYTES_PER_S));
        let registry = &self.target.registry;
        let slow = |_elapsed| RegistryFault::Slow { registry: registry.clone(), bytes: descriptor.size(), limit };
        timeout(limit, self.download_with_retries(descriptor, file, received)).await.map_err(slow)?
    }

    async fn download_with_retries(
        &self,
        descriptor: &Descriptor,
        file: fs::File,
        received: &AtomicU64,
    ) -> Result<(), RegistryFault> {
        let registry = &self.target.registry;
        let mut part = Part { file: File::from_std(file), hasher: hasher(descriptor, registry)?, bytes: 0 };
        let (mut tries, mut corrupt, mut most_bytes) = (0, false, 0_u64);
        loop {
            let fault = match self.resume(descriptor, &mut part, received).await {
                Ok(()) if self.verify(descriptor, &mut part)? => break,
                // A corrupt blob is downloaded once more: the registry may have resumed the download at another offset
                // than requested.
                Ok(()) if !corrupt => {
                    corrupt = true;
                    part.restart(descriptor, received).await?;
                    continue;
                }
                Ok(()) => {
                    return Err(RegistryFault::Corrupt {
                        registry: registry.clone(),
                        digest: descriptor.digest().to_string(),
                    });
                }
                Err(fault) => fault,
            };
            tries = if part.bytes >= most_bytes.saturating_add(PROGRESS_BYTES_MIN) { 1 } else { tries + 1 };
            most_bytes = most_bytes.max(part.bytes);
            if !fault.is_retryable() || tries >= TRIES_MAX {
                return Err(fault);
            }
            tracing::warn!(
                blob = %descriptor.digest(),
                bytes = part.bytes,
                error = &fault as &dyn Error,
                "download interrupted; resuming it"
            );
            sleep(RETRY_DELAY.saturating_mul(1 << (tries - 1)).min(RETRY_DELAY_MAX)).await;
            if matches!(fault, RegistryFault::Blob { unauthorized: true, .. }) {
                self.renew().await?;
            }
        }
        part.file.flush().await.map_err(write_fault(descriptor))
    }

    /// Returns whether the blob is complete and matches its digest.
    fn verify(&self, descriptor: &Descriptor, part: &mut Part) -> Result<bool, RegistryFault> {
        let hasher = std::mem::replace(&mut part.hasher, hasher(descriptor, &self.target.registry)?);
        Ok(part.bytes == descriptor.size() && hasher.finish() == descriptor.digest().digest())
    }

    /// Downloads the rest of the blob. After an interruption, `part` contains the bytes received until then.
    async fn resume(
        &self,
        descriptor: &Descriptor,
        part: &mut Part,
        received: &AtomicU64,
    ) -> Result<(), RegistryFault> {
        if part.bytes == descriptor.size() {
            return Ok(());
        }
        let registry = &self.target.registry;
        let stalled = || RegistryFault::Stalled { registry: registry.clone(), bytes_min: RATE_BYTES_MIN };
        let sent = timeout(READ_TIMEOUT, self.request_blob(descriptor, part.bytes)).await;
        let mut response = sent.map_err(|_| stalled())??;
        if response.status() == StatusCode::OK {
            part.restart(descriptor, received).await?;
        }
        let mut window = (Instant::now() + RATE_WINDOW, part.bytes.saturating_add(RATE_BYTES_MIN));
        loop {
            let chunk = timeout(READ_TIMEOUT, response.chunk()).await.map_err(|_| stalled())?;
            let chunk = chunk.map_err(|fault| RegistryFault::interrupted(registry, &fault.without_url()))?;
            let Some(chunk) = chunk else { break };
            let bytes = part.bytes.saturating_add(chunk.len() as u64);
            if bytes > descriptor.size() {
                let (what, bytes_max) = ("a blob", descriptor.size());
                return Err(RegistryFault::TooLarge { registry: registry.clone(), what, bytes_max });
            }
            part.hasher.update(&chunk);
            part.file.write_all(&chunk).await.map_err(write_fault(descriptor))?;
            part.bytes = bytes;
            received.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            if Instant::now() >= window.0 {
                if bytes < window.1 && bytes < descriptor.size() {
                    return Err(stalled());
                }
                window = (Instant::now() + RATE_WINDOW, bytes.saturating_add(RATE_BYTES_MIN));
            }
        }
        if part.bytes < descriptor.size() {
            let early = io::Error::from(io::ErrorKind::UnexpectedEof);
            return Err(RegistryFault::interrupted(registry, &early));
        }
        Ok(())
    }

    /// Requests the blob from the registry. The URLs in a descriptor are not used, because the image's author chose
    /// them.
    async fn request_blob(&self, descriptor: &Descriptor, from: u64) -> Result<Response, RegistryFault> {
        let registry = &self.target.registry;
        let request = self.get("blobs", descriptor.digest().as_ref()).await?.header(RANGE, format!("bytes={from}-"));
        let response = request.send().await.map_err(|fault| RegistryFault::request_failed(registry, fault))?;
        let status = response.status();
        if matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
            return Ok(response);
        }
        let message = if response.url().origin() == self.target.base.origin() {
            read_bounded(response, ERROR_BYTES_MAX).await.unwrap_or_default()
        } else {
            // Errors never quote the response of a host that a registry redirected us to.
            format!("sent by {} after a redirect", response.url().host_str().unwrap_or_default()).into_bytes()
        };
        Err(RegistryFault::bad_status(registry, status, &message))
    }
}
