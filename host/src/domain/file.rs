// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Files and folders in a guest: write options, ranges, contents and listings.

/// Options of a write.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Writing {
    /// The file's permissions; by default an existing file keeps its permissions, and a new file gets 0644.
    pub mode: Option<u32>,
    /// Whether to append to the file; by default the content replaces the file atomically.
    pub append: bool,
}

/// A part of a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FileRange {
    /// Offset of the first byte in the file.
    pub offset: u64,
    /// Maximum length in bytes.
    pub limit: u64,
}

/// The content of a file or of a part of a file.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct FileContent {
    pub bytes: Vec<u8>,
    /// The whole file's size in bytes; 0 for files that the guest's kernel generates, for example in `/proc`.
    pub file_size: u64,
}

/// Maximum total size in bytes of the names in one listing.
pub const LISTING_NAMES_BYTES_MAX: usize = 3 * 1024 * 1024;

/// A folder's entries.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Listing {
    /// The entries, sorted by name.
    pub entries: Vec<Entry>,
    /// Whether the folder has more entries than this listing.
    pub truncated: bool,
}

/// One entry of a folder; symbolic links are not followed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// The name; in a recursive listing, the path relative to the listed folder. Invalid UTF-8 is replaced.
    pub name: String,
    /// The name's bytes, if they are not valid UTF-8.
    pub raw_name: Option<Vec<u8>>,
    /// `st_mode`: type and permissions.
    pub mode: u32,
    /// Size in bytes.
    pub size: u64,
    /// Time of the last modification, in seconds since the epoch.
    pub modified_unix_s: i64,
}
