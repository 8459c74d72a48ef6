// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Copies the memory of a guest into another file.
//!
//! Most of the copy is made while the guest runs. When it stands still, only what has changed since is copied:
//!
//! - A machine with a file of its own changes that file. It is compared with the copy.
//! - QEMU of a machine with a sealed file has private copies of the pages that the guest has changed. The kernel lists
//!   them in `/proc/PID/pagemap`.
//!
//! QEMU may be hostile. It can only cause a wrong copy of its own guest, because nothing beyond the size of the guest's
//! memory is written, or use up time, which the host limits.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt as _, MetadataExt as _},
    },
};

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, fallocate},
    unistd::{Whence, lseek},
};
use rustix::process::Pid;

const PAGE_BYTES: usize = 4096;
/// Size of the pieces in which memory is copied.
const PIECE_BYTES: usize = 1 << 20;
/// Bits of an entry of `/proc/PID/pagemap`; see the kernel's `Documentation/admin-guide/mm/pagemap.rst`.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
/// The page is of a file, or shared.
const OF_FILE: u64 = 1 << 61;
const ENTRY_BYTES: usize = 8;

/// The memory of a guest whose machine runs.
pub(super) struct GuestMemory {
    file: File,
    /// Whether QEMU has private copies of the pages that the guest has changed.
    is_sealed: bool,
}

/// A part of the file of memory, and where QEMU has it.
struct Mapping {
    address: u64,
    offset: u64,
    bytes: u64,
}

impl GuestMemory {
    pub(super) fn new(file: OwnedFd, is_sealed: bool) -> Self {
        Self { file: file.into(), is_sealed }
    }

    /// Copies the file while the guest runs.
    ///
    /// # Errors
    /// The kernel's error.
    pub(super) fn copy_file(&self, to: &File) -> io::Result<()> {
        self.visit_data(to, |piece, _, offset| to.write_all_at(piece, offset))
    }

    /// Copies what has changed since [`Self::copy_file`]. The guest stands still.
    ///
    /// # Errors
    /// The kernel's error, or QEMU's process has no such memory.
    pub(super) fn copy_changes(&self, to: &File, qemu: Pid) -> io::Result<()> {
        if self.is_sealed {
            return self.copy_private_pages(to, qemu);
        }
        self.visit_data(to, |piece, other, offset| {
            to.read_exact_at(other, offset)?;
            let pages = piece.chunks(PAGE_BYTES).zip(other.chunks(PAGE_BYTES));
            for ((page, old), at) in pages.zip((offset..).step_by(PAGE_BYTES)) {
                if page != old {
                    to.write_all_at(page, at)?;
                }
            }
            Ok(())
        })
    }

    /// Calls `visit` with the pieces of the file that contain data, a buffer of the same size, and the offset. What
    /// contains no data becomes a hole of the copy.
    fn visit_data(&self, to: &File, mut visit: impl FnMut(&[u8], &mut [u8], u64) -> io::Result<()>) -> io::Result<()> {
        let bytes = self.file.metadata()?.len();
        let (mut buffer, mut other) = (vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]);
        let mut offset = 0;
        while offset < bytes {
            let start = match lseek(&self.file, signed(offset)?, Whence::SeekData) {
                Ok(start) => start.unsigned_abs(),
                Err(Errno::ENXIO) => bytes,
                Err(errno) => return Err(errno.into()),
            };
            if start > offset {
                let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                fallocate(to, flags, signed(offset)?, signed(start - offset)?)?;
            }
            if start == bytes {
                break;
            }
            let end = lseek(&self.file, signed(start)?, Whence::SeekHole)?.unsigned_abs();
            offset = start;
            while offset < end {
                let count = usize::try_from(end - offset).unwrap_or(usize::MAX).min(PIECE_BYTES);
                let piece = buffer.get_mut(..count).unwrap_or_default();
                self.file.read_exact_at(piece, offset)?;
                visit(piece, other.get_mut(..count).unwrap_or_default(), offset)?;
                offset += count as u64;
            }
        }
        Ok(())
    }

    fn copy_private_pages(&self, to: &File, qemu: Pid) -> io::Result<()> {
        let size = self.file.metadata()?.len();
        let process = format!("/proc/{}", qemu.as_raw_nonzero());
        let mappings = self.mappings(&fs::read_to_string(format!("{process}/maps"))?)?;
        let (memory, map) = (File::open(format!("{process}/mem"))?, File::open(format!("{process}/pagemap"))?);
        let mut buffer = vec![0; PIECE_BYTES];
        for Mapping { address, offset, bytes } in mappings {
            if offset.checked_add(bytes).is_none_or(|end| end > size) {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let mut entries = vec![0; usize::try_from(bytes).unwrap_or(0) / PAGE_BYTES * ENTRY_BYTES];
            map.read_exact_at(&mut entries, address / PAGE_BYTES as u64 * ENTRY_BYTES as u64)?;
            for (first, count) in private_runs(&entries) {
                let start = first * PAGE_BYTES as u64;
                let length = usize::try_from(count).unwrap_or(0) * PAGE_BYTES;
                let piece = buffer.get_mut(..length).unwrap_or_default();
                memory.read_exact_at(piece, address + start)?;
                to.write_all_at(piece, offset + start)?;
            }
        }
        Ok(())
    }

    /// Finds the mappings of the file in the content of `/proc/PID/maps`.
    fn mappings(&self, maps: &str) -> io::Result<Vec<Mapping>> {
        let file = self.file.metadata()?;
        let device = format!("{:02x}:{:02x}", rustix::fs::major(file.dev()), rustix::fs::minor(file.dev()));
        let inode = file.ino().to_string();
        let mappings: Vec<_> = maps.lines().filter_map(|line| mapping(line, &device, &inode)).collect();
        // A QEMU that a guest has taken over could map the file thousands of times.
        let mapped = mappings.iter().fold(0, |sum: u64, mapping| sum.saturating_add(mapping.bytes));
        match mapped {
            0 => Err(io::ErrorKind::NotFound.into()),
            _ if mapped > file.len() => Err(io::ErrorKind::InvalidData.into()),
            _ => Ok(mappings),
        }
    }
}

/// Parses a line of `/proc/PID/maps`: `from-to flags offset device inode path`. Returns `None` for other files.
fn mapping(line: &str, device: &str, inode: &str) -> Option<Mapping> {
    let mut fields = line.split_ascii_whitespace();
    let ((from, to), _flags, offset) = (fields.next()?.split_once('-')?, fields.next()?, fields.next()?);
    if (fields.next()?, fields.next()?) != (device, inode) {
        return None;
    }
    let number = |text| u64::from_str_radix(text, 16).ok();
    let address = number(from)?;
    Some(Mapping { address, offset: number(offset)?, bytes: number(to)?.checked_sub(address)? })
}

/// Returns the first page and the length of each run of private pages, at most as long as a piece.
fn private_runs(entries: &[u8]) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let is_private = |entry: u64| entry & SWAPPED != 0 || entry & (PRESENT | OF_FILE) == PRESENT;
    for (page, entry) in (0..).zip(entries.as_chunks::<ENTRY_BYTES>().0) {
        if !is_private(u64::from_ne_bytes(*entry)) {
            continue;
        }
        match runs.last_mut() {
            Some((first, count)) if *first + *count == page && *count < (PIECE_BYTES / PAGE_BYTES) as u64 => {
                *count += 1
            }
            _ => runs.push((page, 1)),
        }
    }
    runs
}

fn signed(offset: u64) -> io::Result<i64> {
    i64::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_contain_private_pages_only() {
        let entries: Vec<u8> = [0, PRESENT, PRESENT | 7, PRESENT | OF_FILE, SWAPPED, 0, SWAPPED | OF_FILE, PRESENT]
            .iter()
            .flat_map(|entry: &u64| entry.to_ne_bytes())
            .collect();
        assert_eq!(private_runs(&entries), [(1, 2), (4, 1), (6, 2)]);
        let pages = (PIECE_BYTES / PAGE_BYTES) as u64;
        let long = PRESENT.to_ne_bytes().repeat(usize::try_from(pages).unwrap() + 3);
        assert_eq!(private_runs(&long), [(0, pages), (pages, 3)]);
    }

    #[test]
    fn copy_equals_the_memory_after_changes() {
        const MIB: u64 = 1 << 20;
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        for file in [&from, &to] {
            file.set_len(8 * MIB).unwrap();
        }
        from.write_all_at(&[1; 3 << 20], MIB / 2).unwrap();
        let memory = GuestMemory::new(from.try_clone().unwrap().into(), false);
        memory.copy_file(&to).unwrap();
        from.write_all_at(b"changed", 2 * MIB).unwrap();
        from.write_all_at(b"new", 7 * MIB).unwrap();
        fallocate(&from, FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE, 3 << 20, 4096)
            .unwrap();
        let own = Pid::from_raw(i32::try_from(std::process::id()).unwrap()).unwrap();
        memory.copy_changes(&to, own).unwrap();
        let content = |file: &File| {
            let mut bytes = vec![0; 8 << 20];
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        assert!(content(&from) == content(&to));
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_lines_of_maps_never_panic(line: String, from: u64, to: u64, offset: String) {
            let _ = mapping(&line, "00:01", "77");
            let found = mapping(&format!("{from:x}-{to:x} rw-p {offset} 00:01 77"), "00:01", "77");
            proptest::prop_assert!(found.is_none_or(|found| found.bytes == to - from));
        }

        #[test]
        fn runs_cover_each_private_page_once(entries in proptest::collection::vec(0..16_u64, 0..600)) {
            let entries: Vec<_> = entries.into_iter().map(|flags| flags << 60).collect();
            let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_ne_bytes()).collect();
            let pages = private_runs(&bytes).into_iter().flat_map(|(first, count)| first..first + count);
            let expected = (0..).zip(&entries).filter(|(_, entry)| {
                **entry & SWAPPED != 0 || (**entry & PRESENT != 0 && **entry & OF_FILE == 0)
            });
            proptest::prop_assert!(pages.eq(expected.map(|(page, _)| page)));
        }
    }

    #[test]
    fn memory_that_is_mapped_more_than_once_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x1000).unwrap();
        let about = file.metadata().unwrap();
        let (major, minor) = (rustix::fs::major(about.dev()), rustix::fs::minor(about.dev()));
        let line = format!("7000-8000 rw-p 00000000 {major:02x}:{minor:02x} {} /memfd\n", about.ino());
        let memory = GuestMemory::new(file.into(), true);
        assert_eq!(memory.mappings(&line).unwrap().len(), 1);
        for (maps, kind) in [(String::new(), io::ErrorKind::NotFound), (line.repeat(2), io::ErrorKind::InvalidData)] {
            assert_eq!(memory.mappings(&maps).err().unwrap().kind(), kind);
        }
    }

    #[test]
    fn mappings_of_other_files_are_ignored() {
        let maps = "7f00-8f00 rw-p 00001000 00:01 77 /memfd:waggle-memory (deleted)\n\
                    9000-a000 rw-p 00000000 00:01 78 /memfd:waggle-memory (deleted)\n\
                    b000-c000 rw-p 00000000 00:00 0 \n";
        let found: Vec<_> = maps.lines().filter_map(|line| mapping(line, "00:01", "77")).collect();
        let [Mapping { address: 0x7f00, offset: 0x1000, bytes: 0x1000 }] = found[..] else {
            panic!("{} mappings", found.len())
        };
    }
}
