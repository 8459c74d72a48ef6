// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! A reader of a part of a file. Each reader has a separate position.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt as _,
    sync::Arc,
};

/// A range of a file, and a position in the range. Reads end early if the file is shorter than the range.
#[derive(Clone, Debug)]
pub(super) struct FileRange {
    file: Arc<File>,
    position: u64,
    end: u64,
}

impl FileRange {
    pub(super) fn new(file: Arc<File>, offset: u64, bytes: u64) -> Self {
        Self { file, position: offset, end: offset.saturating_add(bytes) }
    }

    /// Number of bytes left in the range. The file may end before the range.
    pub(super) fn bytes_left(&self) -> u64 {
        self.end.saturating_sub(self.position)
    }
}

impl Read for FileRange {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.bytes_left()).unwrap_or(usize::MAX).min(buffer.len());
        let Some(buffer) = buffer.get_mut(..wanted) else { return Ok(0) };
        let read = self.file.read_at(buffer, self.position)?;
        self.position = self.position.saturating_add(read as u64);
        Ok(read)
    }
}
