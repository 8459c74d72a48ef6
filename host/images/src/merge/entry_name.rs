// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Checks the names of layer entries, splits names into components, and recognizes whiteouts.

use super::limits::{NAME_BYTES_MAX, PATH_BYTES_MAX, PATH_DEPTH_MAX};

/// Prefix of a name that marks a deletion. The layer specification adopted the prefix from AUFS.
const WHITEOUT_PREFIX: &[u8] = b".wh.";
const OPAQUE_WHITEOUT: &[u8] = b".wh..wh..opq";
/// Prefix of AUFS's internal files, which the image tools ignore too.
const AUFS_PREFIX: &[u8] = b".wh..wh.";

/// The reason why a name is invalid in a layer.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum NameFlaw {
    /// No tool writes `..`, so the layer is malicious.
    #[error("it contains the component '..'")]
    ParentComponent,
    #[error("it contains a NUL")]
    Nul,
    #[error("it has a component of {bytes} bytes; at most {NAME_BYTES_MAX} are allowed")]
    ComponentTooLong { bytes: usize },
    #[error("it has {bytes} bytes; at most {PATH_BYTES_MAX} are allowed")]
    TooLong { bytes: usize },
    #[error("it has {components} components; at most {PATH_DEPTH_MAX} are allowed")]
    TooDeep { components: usize },
    /// A whiteout of the empty name, of `.` or of `..`.
    #[error("it is a whiteout without a valid name")]
    EmptyWhiteout,
}

/// The operation that an entry's last component requests.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Request<'a> {
    /// Sets the attributes of the root folder.
    Root,
    /// Adds an entry of this name.
    Put(&'a [u8]),
    /// Removes the entry of this name, if a lower layer added the entry.
    Delete(&'a [u8]),
    /// Removes all entries that lower layers added to the folder.
    Empty,
    Ignore,
}

/// Splits a name into its folders and the request in its last component.
///
/// Leading slashes and `.` components are ignored: some tools write `./etc`, others `/etc`.
pub(super) fn parse_name(name: &[u8]) -> Result<(Vec<&[u8]>, Request<'_>), NameFlaw> {
    let mut folders = components(name)?;
    let Some(last) = folders.pop() else { return Ok((folders, Request::Root)) };
    let request = match last {
        OPAQUE_WHITEOUT => Request::Empty,
        _ if last.starts_with(AUFS_PREFIX) => Request::Ignore,
        _ => match last.strip_prefix(WHITEOUT_PREFIX) {
            Some(b"" | b"." | b"..") => return Err(NameFlaw::EmptyWhiteout),
            Some(target) => Request::Delete(target),
            None => Request::Put(last),
        },
    };
    Ok((folders, request))
}

/// Splits an entry's name, or a hard link's target, into components. A name may be any bytes, as in Linux.
pub(super) fn components(name: &[u8]) -> Result<Vec<&[u8]>, NameFlaw> {
    if name.contains(&0) {
        return Err(NameFlaw::Nul);
    }
    if name.len() > PATH_BYTES_MAX {
        return Err(NameFlaw::TooLong { bytes: name.len() });
    }
    let components: Vec<&[u8]> = parts(name).collect();
    if components.contains(&&b".."[..]) {
        return Err(NameFlaw::ParentComponent);
    }
    if let Some(long) = components.iter().find(|component| component.len() > NAME_BYTES_MAX) {
        return Err(NameFlaw::ComponentTooLong { bytes: long.len() });
    }
    if components.len() > PATH_DEPTH_MAX {
        return Err(NameFlaw::TooDeep { components: components.len() });
    }
    Ok(components)
}

/// Splits a path at slashes. Empty parts and `.` are left out, `..` is not.
pub(super) fn parts(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: impl AsRef<[u8]>, expected: Result<(&[&str], Request<'_>), NameFlaw>) {
        let expected =
            expected.map(|(folders, request)| (folders.iter().map(|folder| folder.as_bytes()).collect(), request));
        assert_eq!(parse_name(name.as_ref()), expected, "{:?}", name.as_ref().escape_ascii());
    }

    #[test]
    fn ignores_slashes_and_dots() {
        check("", Ok((&[], Request::Root)));
        check("./", Ok((&[], Request::Root)));
        check("./etc/passwd", Ok((&["etc"], Request::Put(b"passwd"))));
        check("/etc//./ssl/", Ok((&["etc"], Request::Put(b"ssl"))));
    }

    #[test]
    fn distinguishes_whiteouts_from_entries() {
        check("a/.wh.b", Ok((&["a"], Request::Delete(b"b"))));
        check("a/.wh..wh..opq", Ok((&["a"], Request::Empty)));
        check(".wh..wh.plnk", Ok((&[], Request::Ignore)));
        check("a/.wh.", Err(NameFlaw::EmptyWhiteout));
        check("a/.wh...", Err(NameFlaw::EmptyWhiteout));
        check("a/b.wh.c", Ok((&["a"], Request::Put(b"b.wh.c"))));
    }

    #[test]
    fn rejects_invalid_names() {
        check("../x", Err(NameFlaw::ParentComponent));
        check("a/../x", Err(NameFlaw::ParentComponent));
        check("a\0b", Err(NameFlaw::Nul));
        check("n".repeat(256), Err(NameFlaw::ComponentTooLong { bytes: 256 }));
        check("n/".repeat(257), Err(NameFlaw::TooDeep { components: 257 }));
        check("n".repeat(4097), Err(NameFlaw::TooLong { bytes: 4097 }));
    }

    #[test]
    fn names_need_not_be_utf8() {
        check(b"a/caf\xe9", Ok((&["a"], Request::Put(b"caf\xe9"))));
        check(b".wh.\xff", Ok((&[], Request::Delete(b"\xff"))));
    }
}
