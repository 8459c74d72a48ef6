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
pub const LISTING_NAMES_BYTES_MAX: usize = 512 * 1024;

/// Maximum size in bytes of the text of a name or of a path in a listing: each of 4096 bytes may become four.
pub const NAME_TEXT_BYTES_MAX: usize = 4 * 4096;

/// Options of a listing.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ListOptions {
    /// The text of a name; only entries that sort after it are listed. Empty for all.
    pub after: String,
    /// Maximum number of entries.
    pub entries_max: u32,
    /// Whether to list subfolders as well; each name is then a path relative to the listed folder.
    pub recursive: bool,
}

/// A page of a folder's entries.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Listing {
    /// The entries, sorted by the bytes of their names.
    pub entries: Vec<Entry>,
    /// Number of all entries in the folder and, if the listing is recursive, in its subfolders.
    pub total: u64,
    /// Whether `total` is a minimum.
    pub total_is_minimum: bool,
    /// Whether entries of folders that are too deep are in no page.
    pub too_deep: bool,
    /// The value of [`ListOptions::after`] for the next page; `None` if this page is the last.
    pub next: Option<String>,
}

/// One entry of a folder; symbolic links are not followed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// The text of the name; in a recursive listing, of the path relative to the listed folder. The text is the name
    /// itself, except that it is escaped if the name is not UTF-8, or would be read as such a text.
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
