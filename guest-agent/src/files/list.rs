// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Lists a folder, including dot files. A recursive listing also includes all folders below it.

use std::{ffi::CStr, fs::File, io};

use nix::{
    fcntl::{OFlag, openat},
    sys::stat::{Mode, SFlag},
};
use rustix::fs::{AtFlags, RawDir, statat};
use waggle_protocol::{Fault, LISTING_BYTES_MAX, Reply, reply::Entry};

use super::{
    path::{FileRoot, TargetPath},
    wire::{StreamFault, Wire},
};
use crate::fault::fault_of;

/// Number of bytes of names after which a batch is sent. The batch then still fits into a frame.
const BATCH_BYTES: usize = 16 * 1024;

/// Maximum number of entries in one reply.
const BATCH: usize = 256;

/// Maximum number of levels of a recursive listing; each level needs an open file.
pub(super) const DEPTH_MAX: usize = 32;

/// Buffer size for reading a folder, as in glibc's `readdir`. musl's `readdir` uses 2 KiB, which is slower.
const READ_BYTES: usize = 32 * 1024;

/// Maximum length of an entry's name in bytes: the kernel's own limit.
const NAME_BYTES_MAX: usize = 255;

/// Maximum length of an entry's path in bytes: the kernel's own limit.
const PATH_BYTES_MAX: usize = 4096;

/// Sends at most `entries_max` entries of the folder. Omits entries whose status can't be read, for example because
/// they vanished during the listing, and the content of subfolders that can't be read.
pub(super) fn folder(
    wire: &mut Wire,
    root: &FileRoot,
    path: &str,
    entries_max: u32,
    recursive: bool,
) -> Result<Reply<'static>, Fault> {
    let target = TargetPath::new(root, path);
    let failed = |source: io::Error| fault_of(&source, &format!("failed to list {}", target.named()));
    let top = target.open(OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty()).map_err(failed)?;
    let mut walk = Walk {
        wire,
        batch: Vec::new(),
        batch_bytes: 0,
        entries_left: entries_max,
        bytes_left: LISTING_BYTES_MAX,
        full: false,
        too_deep: false,
        recursive,
    };
    walk.folder(&top, &mut Vec::new(), 0).map_err(|fault| fault.into_fault(failed))?;
    walk.flush()?;
    Ok(Reply::ListEnd { truncated: walk.full || walk.too_deep })
}

struct Walk<'a> {
    wire: &'a mut Wire,
    batch: Vec<Entry>,
    batch_bytes: usize,
    entries_left: u32,
    /// Number of bytes of names that may still be sent.
    bytes_left: usize,
    /// Whether a limit of the listing was reached.
    full: bool,
    /// Whether a folder's content was omitted because the folder is too deep or its path is too long.
    too_deep: bool,
    recursive: bool,
}

impl Walk<'_> {
    /// Sends the entries of `folder`. `above` is the path of `folder` relative to the listed folder.
    fn folder(&mut self, folder: &File, above: &mut Vec<u8>, depth: usize) -> Result<(), StreamFault> {
        let mut buffer = Vec::with_capacity(READ_BYTES);
        let mut names = RawDir::new(folder, buffer.spare_capacity_mut());
        while let Some(name) = names.next() {
            let name = name.map_err(|errno| StreamFault::File(errno.into()))?;
            let name = name.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let Ok(stat) = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) else {
                // Omitted entries also count towards the limit. Otherwise, listing a changing folder might never end.
                self.bytes_left = self.bytes_left.saturating_sub(name.to_bytes().len());
                self.full = self.bytes_left == 0;
                if self.full {
                    return Ok(());
                }
                continue;
            };
            let length = above.len();
            above.extend_from_slice(name.to_bytes());
            let entry = Entry {
                name: above.clone(),
                mode: stat.st_mode,
                size: u64::try_from(stat.st_size).unwrap_or(0),
                modified_unix_s: stat.st_mtime,
            };
            if !self.send(entry).map_err(StreamFault::Stream)? {
                return Ok(());
            }
            let is_folder = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFDIR;
            if self.recursive && is_folder {
                self.below(folder, name, above, depth)?;
            }
            above.truncate(length);
            if self.full {
                return Ok(());
            }
        }
        Ok(())
    }

    fn below(&mut self, at: &File, name: &CStr, above: &mut Vec<u8>, depth: usize) -> Result<(), StreamFault> {
        above.push(b'/');
        if depth + 1 >= DEPTH_MAX || above.len() + NAME_BYTES_MAX > PATH_BYTES_MAX {
            self.too_deep = true;
            return Ok(());
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat(at, name, flags, Mode::empty()) {
            Ok(folder) => self.folder(&folder.into(), above, depth + 1),
            // The folder was removed or replaced after its entry was sent, or is not readable for the user.
            Err(_unreadable) => Ok(()),
        }
    }

    /// Adds an entry to the batch; returns false if a limit of the listing was reached.
    fn send(&mut self, entry: Entry) -> Result<bool, Fault> {
        if self.entries_left == 0 || self.bytes_left < entry.name.len() {
            self.full = true;
            return Ok(false);
        }
        self.entries_left -= 1;
        self.bytes_left -= entry.name.len();
        self.batch_bytes += entry.name.len();
        self.batch.push(entry);
        if self.batch.len() == BATCH || self.batch_bytes >= BATCH_BYTES {
            self.flush()?;
        }
        Ok(true)
    }

    fn flush(&mut self) -> Result<(), Fault> {
        self.batch_bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        if batch.is_empty() { Ok(()) } else { self.wire.reply(&Reply::Entries(batch)) }
    }
}
