// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Files that exist only in memory: the memory of guests, and the state of their devices.
//!
//! A program cannot change the size of such a file, and a sealed file cannot change at all, although programs can open
//! it for writing. So all copies of a machine can use one file.

use std::{
    ffi::CStr,
    fs::File,
    io::{self, Write as _},
    os::{fd::AsFd, unix::fs::MetadataExt as _},
    sync::Arc,
    time::Duration,
};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use tokio::time::sleep;

/// Delay between two attempts to seal a file, and their number.
const SEAL_RETRY: Duration = Duration::from_millis(50);
const SEAL_TRIES: u32 = 100;
/// Number of bytes in a block of `stat`.
const BLOCK_BYTES: u64 = 512;
const MIB: u64 = 1 << 20;

/// A shared handle to one file.
#[derive(Clone, Debug)]
pub(super) struct MemoryFile(Arc<File>);

impl MemoryFile {
    /// Creates the memory of a guest. The file occupies only what the guest uses.
    ///
    /// # Errors
    /// The kernel's error.
    pub(super) fn of_guest(memory_mib: u32) -> io::Result<Self> {
        let file = create(c"waggle-memory")?;
        ftruncate(&file, u64::from(memory_mib) * MIB)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW)?;
        Ok(Self(Arc::new(file)))
    }

    /// Creates a sealed file with this content.
    ///
    /// # Errors
    /// The kernel's error.
    pub(super) fn with_content(content: &[u8]) -> io::Result<Self> {
        let mut file = create(c"waggle-devices")?;
        file.write_all(content)?;
        let file = Self(Arc::new(file));
        file.try_to_seal()?;
        Ok(file)
    }

    /// Makes the file immutable. Waits for the end of a program that still has the file mapped.
    ///
    /// # Errors
    /// The program does not end within seconds.
    pub(super) async fn seal(&self) -> io::Result<()> {
        let mut tries = SEAL_TRIES;
        loop {
            match self.try_to_seal() {
                Err(fault) if tries > 0 && fault.kind() == io::ErrorKind::ResourceBusy => {
                    tries -= 1;
                    sleep(SEAL_RETRY).await;
                }
                sealed => return sealed,
            }
        }
    }

    fn try_to_seal(&self) -> io::Result<()> {
        Ok(fcntl_add_seals(&*self.0, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?)
    }

    /// The memory that the file occupies, in bytes.
    ///
    /// # Errors
    /// The kernel's error.
    pub(super) fn occupied_bytes(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.blocks() * BLOCK_BYTES)
    }

    pub(super) fn file(&self) -> &File {
        &self.0
    }
}

impl AsFd for MemoryFile {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn create(name: &CStr) -> io::Result<File> {
    Ok(memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?.into())
}

#[cfg(test)]
mod tests {
    use std::{fs::OpenOptions, os::fd::AsRawFd as _, os::unix::fs::FileExt as _, path::PathBuf};

    use super::*;

    fn path(file: &MemoryFile) -> PathBuf {
        format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()).into()
    }

    #[test]
    fn memory_is_sparse_and_keeps_its_size() {
        let memory = MemoryFile::of_guest(64).unwrap();
        let opened = OpenOptions::new().read(true).write(true).open(path(&memory)).unwrap();
        opened.write_all_at(b"guest", 5 * MIB).unwrap();
        assert_eq!(memory.file().metadata().unwrap().len(), 64 * MIB);
        assert!(memory.occupied_bytes().unwrap() < MIB);
        opened.set_len(65 * MIB).unwrap_err();
        opened.set_len(MIB).unwrap_err();
        opened.write_all_at(b"guest", 64 * MIB).unwrap_err();
    }

    #[test]
    fn sealed_file_can_be_opened_for_writing_but_not_changed() {
        let memory = MemoryFile::of_guest(1).unwrap();
        memory.file().write_all_at(b"guest", 0).unwrap();
        memory.try_to_seal().unwrap();
        for file in [memory, MemoryFile::with_content(b"guest").unwrap()] {
            let opened = OpenOptions::new().read(true).write(true).open(path(&file)).unwrap();
            opened.write_all_at(b"other", 0).unwrap_err();
            opened.set_len(0).unwrap_err();
            let mut content = [0; 5];
            opened.read_exact_at(&mut content, 0).unwrap();
            assert_eq!(&content, b"guest");
        }
    }
}
