// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Parses the records of a pax extended header (POSIX.1-2017, pax, "pax Extended Header"): `LENGTH KEY=VALUE\n`.

use std::io::{self, Read};

use super::sparse::SparseMap;

/// Key prefix of extended attributes in GNU tar, Go and the image specification.
const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";
const SPARSE_PREFIX: &[u8] = b"GNU.sparse.";

/// A record is invalid.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum PaxFault {
    #[error("invalid record; must be LENGTH KEY=VALUE and a line break")]
    Record,
    #[error("the value of {key} is invalid; must be a number")]
    Number { key: &'static str },
    #[error("the value of {key} is invalid; must not contain a NUL")]
    Nul { key: &'static str },
    #[error("the records of a sparse file are out of order; GNU.sparse.offset must alternate with GNU.sparse.numbytes")]
    SparseOrder,
}

/// The supported records of an extended header.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct PaxRecords {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link_path: Option<Vec<u8>>,
    pub(super) bytes: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    /// Seconds and nanoseconds since the epoch.
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: Option<SparseRecords>,
}

/// The records of a sparse file.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct SparseRecords {
    major: u64,
    /// The file's real name. The record `path` has an invented name, for readers that do not support sparse files.
    pub(super) name: Option<Vec<u8>>,
    bytes: Option<u64>,
    /// Alternating offsets and lengths.
    numbers: Vec<u64>,
}

impl SparseRecords {
    /// Adds a record; `key` is the record's key without `GNU.sparse.`.
    fn add(&mut self, key: &[u8], value: &[u8]) -> Result<(), PaxFault> {
        let is_offset_next = self.numbers.len().is_multiple_of(2);
        match key {
            b"major" => self.major = number("GNU.sparse.major", value)?,
            b"name" => self.name = Some(without_nul("GNU.sparse.name", value)?),
            b"size" => self.bytes = Some(number("GNU.sparse.size", value)?),
            b"realsize" => self.bytes = Some(number("GNU.sparse.realsize", value)?),
            b"offset" if is_offset_next => self.numbers.push(number("GNU.sparse.offset", value)?),
            b"numbytes" if !is_offset_next => self.numbers.push(number("GNU.sparse.numbytes", value)?),
            b"offset" | b"numbytes" => return Err(PaxFault::SparseOrder),
            b"map" => {
                let numbers = value.split(|byte| *byte == b',').map(|part| number("GNU.sparse.map", part));
                self.numbers = numbers.collect::<Result<_, _>>()?;
            }
            // The number of parts and the minor version are not needed.
            _ => {}
        }
        Ok(())
    }

    /// Returns the map, or `None` if the map is missing or invalid. In version 1, the map is read from the start of
    /// `content`. `stored` is the number of content bytes in the archive.
    pub(super) fn map(&self, content: impl Read, stored: u64) -> io::Result<Option<SparseMap>> {
        let Some(bytes) = self.bytes else { return Ok(None) };
        SparseMap::of_records(self.major, &self.numbers, bytes, content, stored)
    }
}

pub(super) fn parse(mut rest: &[u8]) -> Result<PaxRecords, PaxFault> {
    let mut records = PaxRecords::default();
    while !rest.is_empty() {
        let (key, value, after) = split_record(rest).ok_or(PaxFault::Record)?;
        rest = after;
        // An empty value cancels a record of a global header. Global headers are ignored, so the record has no effect.
        if value.is_empty() && !key.starts_with(XATTR_PREFIX) {
            continue;
        }
        match key {
            b"path" => records.path = Some(without_nul("path", value)?),
            b"linkpath" => records.link_path = Some(without_nul("linkpath", value)?),
            b"size" => records.bytes = Some(number("size", value)?),
            b"uid" => records.uid = Some(number("uid", value)?),
            b"gid" => records.gid = Some(number("gid", value)?),
            b"mtime" => records.mtime = Some(time("mtime", value)?),
            _ => {
                if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
                    records.xattrs.push((name.to_vec(), value.to_vec()));
                } else if let Some(key) = key.strip_prefix(SPARSE_PREFIX) {
                    records.sparse.get_or_insert_default().add(key, value)?;
                }
            }
        }
    }
    Ok(records)
}

fn split_record(rest: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = rest.iter().position(|byte| *byte == b' ')?;
    let bytes: usize = std::str::from_utf8(rest.get(..space)?).ok()?.parse().ok()?;
    let (record, after) = rest.split_at_checked(bytes)?;
    let field = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = field.iter().position(|byte| *byte == b'=')?;
    let (key, value) = field.split_at_checked(equals)?;
    (!key.is_empty()).then_some((key, value.get(1..)?, after))
}

fn without_nul(key: &'static str, value: &[u8]) -> Result<Vec<u8>, PaxFault> {
    if value.contains(&0) { Err(PaxFault::Nul { key }) } else { Ok(value.to_vec()) }
}

fn number(key: &'static str, value: &[u8]) -> Result<u64, PaxFault> {
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).ok_or(PaxFault::Number { key })
}

/// Parses decimal seconds, which may be negative or have a fraction. Fraction digits after the ninth are ignored.
fn time(key: &'static str, value: &[u8]) -> Result<(i64, u32), PaxFault> {
    let fault = PaxFault::Number { key };
    let Ok(text) = std::str::from_utf8(value) else { return Err(fault) };
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let Ok(seconds) = whole.parse::<i64>() else { return Err(fault) };
    if !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(fault);
    }
    let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let Ok(nanoseconds) = digits.parse::<u32>() else { return Err(fault) };
    if whole.starts_with('-') && nanoseconds > 0 {
        return Ok((seconds.saturating_sub(1), 1_000_000_000 - nanoseconds));
    }
    Ok((seconds, nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(input: &[u8], expected: &Result<PaxRecords, PaxFault>) {
        assert_eq!(parse(input), *expected);
    }

    #[test]
    fn values_may_contain_line_breaks() {
        let xattrs = vec![(b"user.x".to_vec(), b"a\nb=\0".to_vec())];
        check(b"29 SCHILY.xattr.user.x=a\nb=\0\n", &Ok(PaxRecords { xattrs, ..PaxRecords::default() }));
    }

    #[test]
    fn last_of_two_records_wins() {
        let path = Some(b"b".to_vec());
        check(b"12 path=aa\n9 path=b\n", &Err(PaxFault::Record));
        check(b"11 path=aa\n9 path=b\n", &Ok(PaxRecords { path, ..PaxRecords::default() }));
    }

    #[test]
    fn times_before_the_epoch_are_floored() {
        let at = |mtime| Ok(PaxRecords { mtime: Some(mtime), ..PaxRecords::default() });
        check(b"13 mtime=1.5\n", &at((1, 500_000_000)));
        check(b"14 mtime=-1.5\n", &at((-2, 500_000_000)));
        check(b"14 mtime=-0.5\n", &at((-1, 500_000_000)));
        check(b"22 mtime=1.1234567899\n", &at((1, 123_456_789)));
        check(b"12 mtime=1x\n", &Err(PaxFault::Number { key: "mtime" }));
    }

    #[test]
    fn rejects_invalid_records() {
        for input in [&b"x"[..], b"99 path=a\n", b"9 path=ab", b"5 =a\n", b"-1 a=b\n", b"7 path\n", b" a=b\n"] {
            check(input, &Err(PaxFault::Record));
        }
        check(b"12 path=a\0b\n", &Err(PaxFault::Nul { key: "path" }));
        check(b"11 size=-1\n", &Err(PaxFault::Number { key: "size" }));
        let [offset, length] = [&b"23 GNU.sparse.offset=0\n"[..], b"25 GNU.sparse.numbytes=1\n"];
        for records in [length.to_vec(), [offset, offset].concat(), [offset, length, length].concat()] {
            check(&records, &Err(PaxFault::SparseOrder));
        }
    }
}
