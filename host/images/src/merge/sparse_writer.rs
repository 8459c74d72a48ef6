// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Writes a file from front to back, with holes for long runs of zeros. Holes need no disk space.

use std::{
    fs::File,
    io::{self, BufWriter, Seek as _, Write as _},
};

use super::{
    control::MergeControl,
    trailer::{ContentDigest, ContentHasher},
};

/// Minimum bytes of zeros in one write that become a hole. A hole costs a system call, and file systems have blocks of
/// at least 4 KiB.
const HOLE_BYTES_MIN: usize = 16 * 1024;
const ZEROS: [u8; HOLE_BYTES_MIN] = [0; HOLE_BYTES_MIN];

/// Size of the buffer, which is large because most writes are small.
const BUFFER_BYTES: usize = 1024 * 1024;

#[derive(Debug)]
pub(super) struct SparseWriter<'a> {
    file: BufWriter<File>,
    position: u64,
    /// Bytes of a hole before the position that the file has not been moved over yet.
    hole_bytes: i64,
    hasher: Option<ContentHasher>,
    /// Counts the bytes that need disk space.
    control: &'a MergeControl,
}

impl<'a> SparseWriter<'a> {
    /// Creates a writer for an empty file. A write fails once less than the control's reserve is free.
    pub(super) fn new(file: File, control: &'a MergeControl) -> Self {
        Self { file: BufWriter::with_capacity(BUFFER_BYTES, file), position: 0, hole_bytes: 0, hasher: None, control }
    }

    /// Creates a writer for an empty file that also computes the digest of the content.
    pub(super) fn hashing(file: File, control: &'a MergeControl) -> Self {
        Self { hasher: Some(ContentHasher::default()), ..Self::new(file, control) }
    }

    /// Number of bytes that have been written, with holes.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    pub(super) fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.position = self.position.saturating_add(bytes.len() as u64);
        let length = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
        if bytes.len() >= HOLE_BYTES_MIN && is_zero(bytes) {
            self.hole_bytes = self.hole_bytes.saturating_add(length);
            return Ok(());
        }
        if self.hole_bytes > 0 {
            self.file.seek_relative(std::mem::take(&mut self.hole_bytes))?;
        }
        self.file.write_all(bytes)?;
        self.control.add_written(bytes.len())
    }

    /// Writes zeros up to a position.
    pub(super) fn pad_to(&mut self, position: u64) -> io::Result<()> {
        while let left @ 1.. = position.saturating_sub(self.position) {
            let zeros = ZEROS.get(..usize::try_from(left).unwrap_or(usize::MAX)).unwrap_or(&ZEROS);
            self.write_all(zeros)?;
        }
        Ok(())
    }

    /// Writes what is buffered, and a hole at the end. Returns the file and the digest, which is zero without a hasher.
    pub(super) fn finish(self) -> io::Result<(File, ContentDigest)> {
        let digest = self.hasher.map(ContentHasher::finish).unwrap_or_default();
        let file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.set_len(self.position)?;
        Ok((file, digest))
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    // A comparison of slices is fast without optimisation as well.
    bytes.chunks(HOLE_BYTES_MIN).all(|chunk| ZEROS.get(..chunk.len()) == Some(chunk))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    use waggle_shared::disk_reserve::DiskReserve;

    use super::*;

    #[test]
    fn long_runs_of_zeros_become_holes() {
        let control = MergeControl::default();
        let mut writer = SparseWriter::new(tempfile::tempfile().unwrap(), &control);
        let zeros = vec![0; 1 << 20];
        writer.write_all(b"start").unwrap();
        for _ in 0..16 {
            writer.write_all(&zeros).unwrap();
        }
        writer.write_all(b"end").unwrap();
        writer.pad_to(20 << 20).unwrap();
        let (file, _) = writer.finish().unwrap();
        let metadata = file.metadata().unwrap();
        assert_eq!(metadata.len(), 20 << 20);
        assert!(metadata.blocks() * 512 < 1 << 20, "{} blocks", metadata.blocks());
        let mut found = [7; 13];
        file.read_exact_at(&mut found, (16 << 20) - 1).unwrap();
        assert_eq!(&found, b"\0\0\0\0\0\0end\0\0\0\0");
    }

    #[test]
    fn small_writes_count_towards_the_reserve_and_holes_do_not() {
        // No disk has so much free space.
        let control = MergeControl::with_reserve(DiskReserve::from_mib(u32::MAX), "/".into());
        let mut writer = SparseWriter::hashing(tempfile::tempfile().unwrap(), &control);
        writer.pad_to(64 << 20).unwrap();
        let written = (0..64 << 10).take_while(|_| writer.write_all(&[7; 256]).is_ok()).count();
        assert_eq!((written, control.low_disk().is_some()), ((8 << 20) / 256 - 1, true));
    }
}
