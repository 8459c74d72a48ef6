// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Collects the entries of a page of a listing, and checks that a client can go on after them: their names must ascend.

use waggle_protocol::{LISTING_BYTES_MAX, NAME_BYTES_MAX, name, reply};

use super::fault::AgentFault;
use crate::domain::file::{Entry, ListOptions};

/// Maximum number of entries in a folder and its subfolders.
const TOTAL_MAX: u64 = 1 << 53;

pub(super) struct Page {
    entries: Vec<Entry>,
    entries_max: u32,
    /// Number of bytes of names that may still arrive.
    bytes_left: usize,
    /// The name after which the next name must sort.
    last: Vec<u8>,
}

impl Page {
    pub(super) fn new(options: &ListOptions) -> Self {
        let last = name::from_text(&options.after).into_owned();
        Self { entries: Vec::new(), entries_max: options.entries_max, bytes_left: LISTING_BYTES_MAX, last }
    }

    /// Returns the last name of the page so far, or the name after which the page begins.
    pub(super) fn last(&self) -> &[u8] {
        &self.last
    }

    pub(super) fn add(&mut self, entries: Vec<reply::Entry>) -> Result<(), AgentFault> {
        if self.entries.len() + entries.len() > self.entries_max as usize {
            return Err(AgentFault::TooMuch { what: "entries of a folder", max: self.entries_max.into() });
        }
        for entry in entries {
            check_length(&entry.name)?;
            let too_much = AgentFault::TooMuch { what: "bytes of names", max: LISTING_BYTES_MAX as u64 };
            self.bytes_left = self.bytes_left.checked_sub(entry.name.len()).ok_or(too_much)?;
            if entry.name <= self.last {
                return Err(AgentFault::Unordered);
            }
            self.last.clone_from(&entry.name);
            self.entries.push(domain_entry(entry));
        }
        Ok(())
    }

    /// Returns the text of the name after which the listing goes on. It may be the name of an entry that has vanished.
    pub(super) fn next(&self, next: Option<Vec<u8>>) -> Result<Option<String>, AgentFault> {
        let Some(next) = next else { return Ok(None) };
        check_length(&next)?;
        let goes_on = if self.entries.is_empty() { next > self.last } else { next >= self.last };
        if goes_on { Ok(Some(name::to_text(&next).into_owned())) } else { Err(AgentFault::Unordered) }
    }

    /// Checks the number of all entries. JSON numbers above the maximum are not exact.
    pub(super) fn check_total(&self, total: u64) -> Result<(), AgentFault> {
        if total > TOTAL_MAX {
            return Err(AgentFault::TooMuch { what: "entries in total", max: TOTAL_MAX });
        }
        if total < self.entries.len() as u64 { Err(AgentFault::Miscounted) } else { Ok(()) }
    }

    pub(super) fn into_entries(self) -> Vec<Entry> {
        self.entries
    }
}

fn check_length(name: &[u8]) -> Result<(), AgentFault> {
    let too_much = AgentFault::TooMuch { what: "bytes of a name", max: NAME_BYTES_MAX as u64 };
    if name.len() > NAME_BYTES_MAX { Err(too_much) } else { Ok(()) }
}

/// Converts an entry of a folder into the domain's type.
fn domain_entry(entry: reply::Entry) -> Entry {
    let name = name::to_text(&entry.name).into_owned();
    let raw_name = if str::from_utf8(&entry.name).is_ok() { None } else { Some(entry.name) };
    Entry { name, raw_name, mode: entry.mode, size: entry.size, modified_unix_s: entry.modified_unix_s }
}
