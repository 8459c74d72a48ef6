// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The digest of a merged image, in a block behind the file system.
//!
//! The digest shows whether the file still has the content that was written: a disk can lose or change bytes. It is no
//! protection from an attacker who can write to the file, because he can write another digest as well.
//!
//! ```text
//! EROFS file system, N bytes │ "waggleDG", N, SHA-256, zeros up to 4 KiB
//! ```
//!
//! The SHA-256 covers the number and the content of each piece of 64 KiB that has a byte other than zero, and then N.
//! So holes cost nothing, and it does not matter which zeros a file system stores as holes. The kernel does not look
//! behind the blocks that the superblock counts.

use std::{fs::File, io, os::unix::fs::FileExt as _};

use nix::{
    errno::Errno,
    unistd::{Whence, lseek},
};
use sha2::{Digest as _, Sha256};

use super::control::MergeControl;

const MAGIC: &[u8; 8] = b"waggleDG";
const TRAILER_BYTES: usize = 4096;
const PIECE_BYTES: usize = 64 * 1024;
const READ_BYTES: usize = 16 * PIECE_BYTES;
static ZEROS: [u8; PIECE_BYTES] = [0; PIECE_BYTES];

pub(crate) type ContentDigest = [u8; 32];

/// The state of a merged image's file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Integrity {
    Whole,
    /// The content is not the content that was written.
    Damaged,
}

/// Computes the digest of content that is written from front to back.
#[derive(Debug, Default)]
pub(super) struct ContentHasher {
    hasher: Sha256,
    /// The beginning of the next piece, shorter than a piece.
    started: Vec<u8>,
    pieces: u64,
}

impl ContentHasher {
    pub(super) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.started.is_empty() && bytes.len() >= PIECE_BYTES {
                let (piece, rest) = bytes.split_at(PIECE_BYTES);
                self.add(piece);
                bytes = rest;
                continue;
            }
            let (part, rest) = bytes.split_at(bytes.len().min(PIECE_BYTES - self.started.len()));
            self.started.extend_from_slice(part);
            bytes = rest;
            if self.started.len() == PIECE_BYTES {
                let mut piece = std::mem::take(&mut self.started);
                self.add(&piece);
                piece.clear();
                self.started = piece;
            }
        }
    }

    /// Adds a piece that follows the pieces before.
    fn add(&mut self, piece: &[u8]) {
        if ZEROS.get(..piece.len()) != Some(piece) {
            self.hasher.update(self.pieces.to_le_bytes());
            self.hasher.update(piece);
        }
        self.pieces += 1;
    }

    pub(super) fn finish(mut self) -> ContentDigest {
        let bytes = self.pieces.saturating_mul(PIECE_BYTES as u64).saturating_add(self.started.len() as u64);
        let last = std::mem::take(&mut self.started);
        self.add(&last);
        self.hasher.update(bytes.to_le_bytes());
        self.hasher.finalize().into()
    }
}

/// Appends the digest to a file.
pub(super) fn append(file: &File, digest: &ContentDigest) -> io::Result<()> {
    let bytes = file.metadata()?.len();
    let mut trailer = Vec::with_capacity(TRAILER_BYTES);
    trailer.extend_from_slice(MAGIC);
    trailer.extend_from_slice(&bytes.to_le_bytes());
    trailer.extend_from_slice(digest);
    trailer.resize(TRAILER_BYTES, 0);
    file.write_all_at(&trailer, bytes)
}

/// Reads the file and compares its content with its digest. Blocks.
pub(crate) fn check(file: &File, control: &MergeControl) -> io::Result<Integrity> {
    let Some(bytes) = file.metadata()?.len().checked_sub(TRAILER_BYTES as u64) else { return Ok(Integrity::Damaged) };
    let mut trailer = [0; TRAILER_BYTES];
    file.read_exact_at(&mut trailer, bytes)?;
    let mut expected = [MAGIC.as_slice(), &bytes.to_le_bytes(), &digest_of(file, bytes, control)?].concat();
    expected.resize(TRAILER_BYTES, 0);
    Ok(if expected == trailer { Integrity::Whole } else { Integrity::Damaged })
}

fn digest_of(file: &File, bytes: u64, control: &MergeControl) -> io::Result<ContentDigest> {
    let mut hasher = ContentHasher::default();
    let mut buffer = vec![0; READ_BYTES];
    let mut position = 0;
    while position < bytes {
        control.check()?;
        let wanted = usize::try_from(bytes - position).unwrap_or(READ_BYTES).min(READ_BYTES);
        let Some(read) = buffer.get_mut(..wanted) else { break };
        file.read_exact_at(read, position)?;
        hasher.update(read);
        position += wanted as u64;
        if wanted == READ_BYTES && read.chunks(PIECE_BYTES).all(|piece| ZEROS.get(..piece.len()) == Some(piece)) {
            // This is probably within a hole.
            let data = next_data(file, position)?.unwrap_or(bytes).min(bytes);
            let pieces = data.saturating_sub(position) / PIECE_BYTES as u64;
            hasher.pieces += pieces;
            position += pieces * PIECE_BYTES as u64;
        }
    }
    Ok(hasher.finish())
}

/// Returns the start of the next data of a sparse file, or `None` if only a hole follows.
fn next_data(file: &File, from: u64) -> io::Result<Option<u64>> {
    match lseek(file, i64::try_from(from).map_err(io::Error::other)?, Whence::SeekData) {
        Ok(found) => Ok(u64::try_from(found).ok()),
        Err(Errno::ENXIO) => Ok(None),
        // The file system does not know its holes.
        Err(_) => Ok(Some(from)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, SeekFrom, Write as _};

    use super::*;

    fn digest(parts: &[&[u8]]) -> ContentDigest {
        let mut hasher = ContentHasher::default();
        parts.iter().for_each(|part| hasher.update(part));
        hasher.finish()
    }

    #[test]
    fn digest_depends_on_content_and_length_only() {
        let content: Vec<_> = (0..3 * PIECE_BYTES + 5).map(|at| u8::try_from(at % 251).unwrap()).collect();
        let (front, back) = content.split_at(70_000);
        let expected = digest(&[&content]);
        assert_eq!(digest(&[front, back]), expected);
        let pieces: Vec<_> = content.chunks(999).collect();
        assert_eq!(digest(&pieces), expected);
        assert_ne!(digest(&[&content, &[0]]), expected);
        assert_ne!(digest(&[&ZEROS, &content]), expected);
        assert_ne!(digest(&[&[0; 10]]), digest(&[&[0; 11]]));
    }

    #[test]
    fn holes_and_stored_zeros_are_equal_and_each_flipped_byte_is_found() {
        let data = vec![7; 100_000];
        let hole = 5 * READ_BYTES + 12_345;
        let bytes = data.len() + hole + 3;
        let (mut sparse, mut stored) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        sparse.write_all(&data).unwrap();
        sparse.seek(SeekFrom::Current(i64::try_from(hole).unwrap())).unwrap();
        sparse.write_all(b"end").unwrap();
        stored.write_all(&data).unwrap();
        stored.write_all(&vec![0; hole]).unwrap();
        stored.write_all(b"end").unwrap();
        let digest = digest(&[&data, &vec![0; hole], b"end"]);
        for file in [&sparse, &stored] {
            append(file, &digest).unwrap();
            assert_eq!(check(file, &MergeControl::default()).unwrap(), Integrity::Whole);
        }
        for at in [0, 99_999, 3_000_000, bytes - 1, bytes, bytes + 8, bytes + 16, bytes + TRAILER_BYTES - 1] {
            let mut byte = [0];
            sparse.read_exact_at(&mut byte, at as u64).unwrap();
            sparse.write_all_at(&[byte[0] ^ 1], at as u64).unwrap();
            assert_eq!(check(&sparse, &MergeControl::default()).unwrap(), Integrity::Damaged, "byte {at}");
            sparse.write_all_at(&byte, at as u64).unwrap();
        }
        assert_eq!(check(&sparse, &MergeControl::default()).unwrap(), Integrity::Whole);
        let control = MergeControl::default();
        control.cancel();
        assert!(check(&sparse, &control).is_err());
    }
}
