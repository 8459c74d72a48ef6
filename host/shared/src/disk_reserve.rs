// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The free space that must remain on the host's disks.
//!
//! The scratch disks of running machines grow as their programs write. If the host's disk is full, these writes fail,
//! and the guests' kernels report errors for data that they had accepted. New environments and new images are therefore
//! refused while some space is left.

use std::path::Path;

use rustix::fs::{StatVfs, statvfs};

const MIB: u64 = 1024 * 1024;

/// Minimum number of free inodes. The files of a machine and of a pull are fewer than a hundred; the rest is for the
/// host's other programs.
const INODES_FREE_MIN: u64 = 1000;

/// The bytes that must remain free on a file system.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct DiskReserve {
    bytes: u64,
}

/// A file system has less free space than its reserve. The text contains no path, so that clients may read it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum LowDisk {
    #[error(
        "the server's disk has {} MiB free, and a reserve of {} MiB must remain free{}",
        free_bytes / MIB,
        reserve_bytes / MIB,
        needed(*needed_bytes)
    )]
    Space { free_bytes: u64, reserve_bytes: u64, needed_bytes: u64 },
    #[error("the server's disk has {free} inodes free, and at least {INODES_FREE_MIN} must remain free")]
    Inodes { free: u64 },
}

fn needed(bytes: u64) -> String {
    if bytes == 0 { String::new() } else { format!("; {} MiB more are needed", bytes.div_ceil(MIB)) }
}

impl DiskReserve {
    /// A reserve of this size; 0 disables all checks.
    #[must_use]
    pub const fn from_mib(mib: u32) -> Self {
        Self { bytes: mib as u64 * MIB }
    }

    /// The size in MiB.
    #[must_use]
    pub const fn mib(self) -> u64 {
        self.bytes / MIB
    }

    /// Checks whether the reserve remains free on the folder's file system after `needed_bytes` have been written. A
    /// folder that cannot be examined passes, because the operation that follows reports the error better. Blocks.
    ///
    /// # Errors
    /// [`LowDisk`].
    pub fn check(self, folder: &Path, needed_bytes: u64) -> Result<(), LowDisk> {
        if self.bytes == 0 {
            return Ok(());
        }
        statvfs(folder).map_or(Ok(()), |found| self.compare(&found, needed_bytes))
    }

    fn compare(self, found: &StatVfs, needed_bytes: u64) -> Result<(), LowDisk> {
        // The space that users other than root can use.
        let free_bytes = found.f_bavail.saturating_mul(found.f_frsize);
        if free_bytes < self.bytes.saturating_add(needed_bytes) {
            return Err(LowDisk::Space { free_bytes, reserve_bytes: self.bytes, needed_bytes });
        }
        // File systems without a fixed number of inodes report none.
        if found.f_files > 0 && found.f_favail < INODES_FREE_MIN {
            return Err(LowDisk::Inodes { free: found.f_favail });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(free_mib: u64, inodes: u64, inodes_free: u64) -> StatVfs {
        let mut found = statvfs("/").unwrap();
        (found.f_bavail, found.f_frsize) = (free_mib * 256, 4096);
        (found.f_files, found.f_favail) = (inodes, inodes_free);
        found
    }

    #[test]
    fn reserve_must_remain_free_in_bytes_and_inodes() {
        let reserve = DiskReserve::from_mib(100);
        assert_eq!(reserve.compare(&found(100, 9000, 1000), 0), Ok(()));
        assert_eq!(reserve.compare(&found(120, 9000, 1000), 20 * MIB), Ok(()));
        let low = reserve.compare(&found(99, 9000, 1000), 0).unwrap_err();
        assert_eq!(low.to_string(), "the server's disk has 99 MiB free, and a reserve of 100 MiB must remain free");
        let low = reserve.compare(&found(119, 9000, 1000), 20 * MIB).unwrap_err();
        assert!(low.to_string().ends_with("must remain free; 20 MiB more are needed"), "{low}");
        assert_eq!(reserve.compare(&found(200, 9000, 999), 0), Err(LowDisk::Inodes { free: 999 }));
        assert_eq!(reserve.compare(&found(200, 0, 0), 0), Ok(()));
    }

    #[test]
    fn reserve_of_zero_and_unknown_folders_pass() {
        assert_eq!(DiskReserve::default().check(Path::new("/"), u64::MAX), Ok(()));
        assert_eq!(DiskReserve::from_mib(1).check(Path::new("/no/such/folder"), u64::MAX), Ok(()));
        assert!(DiskReserve::from_mib(1).check(Path::new("/"), u64::MAX - MIB).is_err());
    }
}
