// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! A blob's way into a file: streamed, counted and hashed, taken up again where it broke off, and good only if its
//! digest is the right one.

use std::{fs, io::SeekFrom, time::Duration};

use oci_spec::image::Descriptor;
use reqwest::{Response, StatusCode, header::RANGE};
use tokio::{
    fs::File,
    io::{AsyncSeekExt as _, AsyncWriteExt as _},
    time::{Instant, sleep, timeout},
};

use super::{READ_TIMEOUT, RegistryFault, Session, document::read_bounded};
use crate::images::merge::Hasher;

/// Tries without getting on, at a time, for one blob.
const TRIES_MAX: u32 = 6;

/// A try that brought so many bytes more than there ever were got on.
const PROGRESS_BYTES_MIN: u64 = 1024 * 1024;

/// From one try to the next, doubled each time: half a minute for all of them.
const RETRY_DELAY: Duration = Duration::from_millis(500);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(10);

/// A download has to bring so many bytes in each such time; slower ones would hold their place for ever.
pub(super) const RATE_WINDOW: Duration = Duration::from_secs(60);
const RATE_BYTES_MIN: u64 = 64 * 1024;

/// What a whole blob may take: this, and a second for each so many bytes. An image of 1 GB comes within three hours
/// over a line of 1 Mbit/s, which is slow enough.
const WHOLE_TIME: Duration = Duration::from_secs(15 * 60);
const WHOLE_BYTES_PER_S: u64 = 100 * 1000;

/// Bytes of what a registry says in place of a blob; of longer words, only the status is told.
const REFUSAL_BYTES_MAX: u64 = 16 * 1024;

/// What of a blob is in its file.
struct Part {
    file: File,
    hasher: Hasher,
    bytes: u64,
}

impl Part {
    async fn restart(&mut self, descriptor: &Descriptor) -> Result<(), RegistryFault> {
        let fault = write_fault(descriptor);
        self.file.set_len(0).await.map_err(&fault)?;
        self.file.seek(SeekFrom::Start(0)).await.map_err(&fault)?;
        self.hasher = hasher(descriptor, "this machine")?;
        self.bytes = 0;
        Ok(())
    }
}

fn hasher(descriptor: &Descriptor, registry: &str) -> Result<Hasher, RegistryFault> {
    let digest = descriptor.digest();
    let corrupt = || RegistryFault::Corrupt { registry: registry.to_owned(), digest: digest.to_string() };
    Hasher::of(digest).ok_or_else(corrupt)
}

fn write_fault(descriptor: &Descriptor) -> impl Fn(std::io::Error) -> RegistryFault {
    let digest = descriptor.digest().to_string();
    move |source| RegistryFault::Write { digest: digest.clone(), source }
}

impl Session<'_> {
    /// Downloads a blob into an empty file; `tell` hears how many of its bytes are there.
    pub(crate) async fn download(
        &self,
        descriptor: &Descriptor,
        file: fs::File,
        tell: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), RegistryFault> {
        // The semaphore is never closed.
        let _place = self.registries.downloads.acquire().await.ok();
        let within = WHOLE_TIME.saturating_add(Duration::from_secs(descriptor.size() / WHOLE_BYTES_PER_S));
        let registry = &self.target.registry;
        let slow = |_elapsed| RegistryFault::Slow { registry: registry.clone(), bytes: descriptor.size(), within };
        timeout(within, self.download_whole(descriptor, file, tell)).await.map_err(slow)?
    }

    async fn download_whole(
        &self,
        descriptor: &Descriptor,
        file: fs::File,
        tell: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), RegistryFault> {
        let registry = &self.target.registry;
        let mut part = Part { file: File::from_std(file), hasher: hasher(descriptor, registry)?, bytes: 0 };
        let (mut tries, mut corrupt, mut most_bytes) = (0, false, 0_u64);
        loop {
            let fault = match self.go_on(descriptor, &mut part, tell).await {
                Ok(()) if self.is_right(descriptor, &mut part)? => break,
                // A registry that takes up a blob at another place than it was told is given one more chance.
                Ok(()) if !corrupt => {
                    corrupt = true;
                    part.restart(descriptor).await?;
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
            if !fault.is_passing() || tries >= TRIES_MAX {
                return Err(fault);
            }
            tracing::warn!(
                blob = %descriptor.digest(),
                bytes = part.bytes,
                error = %fault,
                "a download broke off, and will be taken up again"
            );
            sleep(RETRY_DELAY.saturating_mul(1 << (tries - 1)).min(RETRY_DELAY_MAX)).await;
            if matches!(fault, RegistryFault::Said { unauthorized: true, .. }) {
                self.renew().await?;
            }
        }
        part.file.flush().await.map_err(write_fault(descriptor))
    }

    /// Whether the whole blob is there and is what its digest names.
    fn is_right(&self, descriptor: &Descriptor, part: &mut Part) -> Result<bool, RegistryFault> {
        let hasher = std::mem::replace(&mut part.hasher, hasher(descriptor, &self.target.registry)?);
        Ok(part.bytes == descriptor.size() && hasher.finish() == descriptor.digest().digest())
    }

    /// Reads from where the part ends to the end of the blob, or as far as it gets.
    async fn go_on(
        &self,
        descriptor: &Descriptor,
        part: &mut Part,
        tell: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), RegistryFault> {
        if part.bytes == descriptor.size() {
            return Ok(());
        }
        let registry = &self.target.registry;
        let stalled = || RegistryFault::Stalled { registry: registry.clone(), bytes_min: RATE_BYTES_MIN };
        let asked = timeout(READ_TIMEOUT, self.ask(descriptor, part.bytes)).await;
        let mut response = asked.map_err(|_| stalled())??;
        if response.status() == StatusCode::OK {
            part.restart(descriptor).await?;
        }
        let mut window = (Instant::now() + RATE_WINDOW, part.bytes.saturating_add(RATE_BYTES_MIN));
        loop {
            let piece = timeout(READ_TIMEOUT, response.chunk()).await.map_err(|_| stalled())?;
            let piece = piece.map_err(|fault| RegistryFault::cut(registry, &fault.without_url()))?;
            let Some(piece) = piece else { break };
            let bytes = part.bytes.saturating_add(piece.len() as u64);
            if bytes > descriptor.size() {
                let (what, bytes_max) = ("a blob", descriptor.size());
                return Err(RegistryFault::TooLarge { registry: registry.clone(), what, bytes_max });
            }
            part.hasher.update(&piece);
            part.file.write_all(&piece).await.map_err(write_fault(descriptor))?;
            part.bytes = bytes;
            tell(bytes);
            if Instant::now() >= window.0 {
                if bytes < window.1 && bytes < descriptor.size() {
                    return Err(stalled());
                }
                window = (Instant::now() + RATE_WINDOW, bytes.saturating_add(RATE_BYTES_MIN));
            }
        }
        if part.bytes < descriptor.size() {
            let early = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
            return Err(RegistryFault::cut(registry, &early));
        }
        Ok(())
    }

    /// Asks the registry, not the addresses that a descriptor may have: whoever made the image chose those.
    async fn ask(&self, descriptor: &Descriptor, from: u64) -> Result<Response, RegistryFault> {
        let registry = &self.target.registry;
        let request = self.get("blobs", descriptor.digest().as_ref()).await?.header(RANGE, format!("bytes={from}-"));
        let response = request.send().await.map_err(|fault| RegistryFault::no_answer(registry, fault))?;
        let status = response.status();
        if matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
            return Ok(response);
        }
        let said = if response.url().origin() == self.target.base.origin() {
            read_bounded(response, REFUSAL_BYTES_MAX).await.unwrap_or_default()
        } else {
            // What another host says is no word of the registry's, and may be none for our caller.
            format!("by {}, where it sent us", response.url().host_str().unwrap_or_default()).into_bytes()
        };
        Err(RegistryFault::refused(registry, status, &said))
    }
}
