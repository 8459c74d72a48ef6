// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Files and folders in a guest: options of a write, parts and contents, listings.

/// Options of a write.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Writing {
    /// Permissions; by default an existing file keeps its own and a new one gets 0644.
    pub mode: Option<u32>,
    /// Appends to the file; by default the content replaces the file atomically.
    pub append: bool,
}

/// A part of a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FileRange {
    /// Its first byte.
    pub offset: u64,
    /// Its maximum length in bytes.
    pub limit: u64,
}

/// The content of a file, or of a part of one.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct FileContent {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// The whole file's size in bytes; 0 for files that the guest's kernel generates, as in `/proc`.
    pub file_size: u64,
}

/// Maximum total bytes of the names in one listing.
pub const LISTING_NAMES_BYTES_MAX: usize = 3 * 1024 * 1024;

/// A folder's entries.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Listing {
    /// Sorted by name.
    pub entries: Vec<Entry>,
    /// Whether the folder holds more entries than were asked for.
    pub truncated: bool,
}

/// One entry of a folder; symbolic links are not followed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// Its name, or in a recursive listing its path below the folder; invalid UTF-8 is replaced.
    pub name: String,
    /// The name's bytes, if they are not valid UTF-8.
    pub raw_name: Option<Vec<u8>>,
    /// `st_mode`: type and permissions.
    pub mode: u32,
    /// Bytes.
    pub size: u64,
    /// Seconds since the epoch.
    pub modified_unix_s: i64,
}
