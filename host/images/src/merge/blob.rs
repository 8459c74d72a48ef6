// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Reads and hashes blobs. The content must not be trusted before `finish` has verified the digest.

use std::io::{self, Read};

use oci_spec::image::{Descriptor, Digest, DigestAlgorithm};
use sha2::{Digest as _, Sha256, Sha512};

use super::file_range::FileRange;

/// Size of the buffer for content that is only hashed.
const DRAIN_BUFFER_BYTES: usize = 256 * 1024;

/// A blob does not match its descriptor.
#[derive(Debug, thiserror::Error)]
pub enum BlobFault {
    #[error("the blob {digest} is missing")]
    Missing { digest: String },
    #[error("the digest {digest} is neither sha256 nor sha512")]
    Algorithm { digest: String },
    #[error("the blob {digest} has {found} bytes; its descriptor says {expected}")]
    Size { digest: String, expected: u64, found: u64 },
    #[error("the blob {digest} is corrupt: its content has the digest {found}")]
    Digest { digest: String, found: String },
    #[error("failed to read the blob {digest}")]
    Read { digest: String, source: io::Error },
}

/// Hashes content with the algorithm of the content's digest.
pub(crate) enum Hasher {
    Sha256(Sha256),
    Sha512(Box<Sha512>),
}

impl std::fmt::Debug for Hasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hasher")
    }
}

impl Hasher {
    /// Returns `None` for an unsupported algorithm.
    pub(crate) fn of(digest: &Digest) -> Option<Self> {
        match digest.algorithm() {
            DigestAlgorithm::Sha256 => Some(Self::Sha256(Sha256::new())),
            DigestAlgorithm::Sha512 => Some(Self::Sha512(Box::new(Sha512::new()))),
            DigestAlgorithm::Sha384 | DigestAlgorithm::Other(_) | _ => None,
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// Returns the hash in hexadecimal.
    pub(crate) fn finish(self) -> String {
        match self {
            Self::Sha256(hasher) => to_hex(&hasher.finalize()),
            Self::Sha512(hasher) => to_hex(&hasher.finalize()),
        }
    }
}

/// A reader that hashes the content of a blob.
pub(super) struct BlobReader {
    content: FileRange,
    hasher: Hasher,
    digest: Digest,
    bytes: u64,
}

impl BlobReader {
    /// Creates a reader, and checks the size of the blob. `content` is the whole blob as it is stored.
    pub(super) fn new(content: FileRange, descriptor: &Descriptor) -> Result<Self, BlobFault> {
        let digest = descriptor.digest().clone();
        let Some(hasher) = Hasher::of(&digest) else {
            return Err(BlobFault::Algorithm { digest: digest.to_string() });
        };
        let (expected, found) = (descriptor.size(), content.bytes_left());
        if expected != found {
            return Err(BlobFault::Size { digest: digest.to_string(), expected, found });
        }
        Ok(Self { content, hasher, digest, bytes: expected })
    }

    /// Reads the rest of the blob, and verifies the digest of the whole blob.
    pub(super) fn finish(mut self) -> Result<(), BlobFault> {
        let mut buffer = vec![0; DRAIN_BUFFER_BYTES];
        loop {
            match self.read(&mut buffer) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(BlobFault::Read { digest: self.digest.to_string(), source }),
            }
        }
        let left = self.content.bytes_left();
        if left > 0 {
            let found = self.bytes.saturating_sub(left);
            return Err(BlobFault::Size { digest: self.digest.to_string(), expected: self.bytes, found });
        }
        let found = self.hasher.finish();
        if found != self.digest.digest() {
            let found = format!("{}:{found}", self.digest.algorithm());
            return Err(BlobFault::Digest { digest: self.digest.to_string(), found });
        }
        Ok(())
    }

    /// Reads and verifies the whole blob. The caller has checked that the blob fits into memory.
    pub(super) fn read_whole(mut self) -> Result<Vec<u8>, BlobFault> {
        let mut content = Vec::new();
        if let Err(source) = self.read_to_end(&mut content) {
            return Err(BlobFault::Read { digest: self.digest.to_string(), source });
        }
        self.finish()?;
        Ok(content)
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.content.read(buffer)?;
        self.hasher.update(buffer.get(..read).unwrap_or_default());
        Ok(read)
    }
}

fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
