// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Names of layer entries: checked, split into components, told apart from whiteouts.

use super::limits::{NAME_BYTES_MAX, PATH_BYTES_MAX, PATH_DEPTH_MAX};

/// Marks a deletion, as the layer specification took it over from AUFS.
const WHITEOUT_PREFIX: &str = ".wh.";
const OPAQUE_WHITEOUT: &str = ".wh..wh..opq";
/// AUFS's own bookkeeping; the image tools leave it out too.
const AUFS_PREFIX: &str = ".wh..wh.";

/// Why a name cannot be one in a layer.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum NameFlaw {
    /// `..` in it: no tool writes that, so somebody tries something.
    #[error("it contains the component '..'")]
    ParentComponent,
    /// A NUL in it.
    #[error("it contains a NUL")]
    Nul,
    /// Not UTF-8, which the EROFS writer needs.
    #[error("it is not UTF-8, which is not supported")]
    NotUtf8,
    /// A component too long for any Linux file system.
    #[error("it has a component of {bytes} bytes, and at most {NAME_BYTES_MAX} are allowed")]
    ComponentTooLong {
        /// Its bytes.
        bytes: usize,
    },
    /// Longer than a path can be.
    #[error("it has {bytes} bytes, and at most {PATH_BYTES_MAX} are allowed")]
    TooLong {
        /// Its bytes.
        bytes: usize,
    },
    /// Too many components.
    #[error("it has {components} components, and at most {PATH_DEPTH_MAX} are allowed")]
    TooDeep {
        /// How many.
        components: usize,
    },
    /// A whiteout of nothing, of `.` or of `..`.
    #[error("it is a whiteout that names nothing")]
    EmptyWhiteout,
}

/// What an entry's last component asks for.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Request<'a> {
    /// The root folder itself.
    Root,
    /// An entry of this name.
    Put(&'a str),
    /// That the layers below lose this name.
    Delete(&'a str),
    /// That the folder loses what the layers below put into it.
    Empty,
    /// Nothing.
    Ignore,
}

/// Splits a name into its folders and what to do there.
///
/// Leading slashes and `.` components mean nothing: tools write `./etc`, some `/etc`, and both mean the same place.
pub(super) fn parse_name(name: &[u8]) -> Result<(Vec<&str>, Request<'_>), NameFlaw> {
    let mut folders = components(name)?;
    let Some(last) = folders.pop() else { return Ok((folders, Request::Root)) };
    let request = match last {
        OPAQUE_WHITEOUT => Request::Empty,
        _ if last.starts_with(AUFS_PREFIX) => Request::Ignore,
        _ => match last.strip_prefix(WHITEOUT_PREFIX) {
            Some("" | "." | "..") => return Err(NameFlaw::EmptyWhiteout),
            Some(target) => Request::Delete(target),
            None => Request::Put(last),
        },
    };
    Ok((folders, request))
}

/// The components of an entry's name or of a hard link's target.
pub(super) fn components(name: &[u8]) -> Result<Vec<&str>, NameFlaw> {
    if name.contains(&0) {
        return Err(NameFlaw::Nul);
    }
    if name.len() > PATH_BYTES_MAX {
        return Err(NameFlaw::TooLong { bytes: name.len() });
    }
    let name = std::str::from_utf8(name).map_err(|_| NameFlaw::NotUtf8)?;
    let components: Vec<&str> = name.split('/').filter(|component| !matches!(*component, "" | ".")).collect();
    if components.contains(&"..") {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, expected: Result<(&[&str], Request<'_>), NameFlaw>) {
        let expected = expected.map(|(folders, request)| (folders.to_vec(), request));
        assert_eq!(parse_name(name.as_bytes()), expected, "{name:?}");
    }

    #[test]
    fn slashes_and_dots_mean_nothing() {
        check("", Ok((&[], Request::Root)));
        check("./", Ok((&[], Request::Root)));
        check("./etc/passwd", Ok((&["etc"], Request::Put("passwd"))));
        check("/etc//./ssl/", Ok((&["etc"], Request::Put("ssl"))));
    }

    #[test]
    fn whiteouts_are_told_apart() {
        check("a/.wh.b", Ok((&["a"], Request::Delete("b"))));
        check("a/.wh..wh..opq", Ok((&["a"], Request::Empty)));
        check(".wh..wh.plnk", Ok((&[], Request::Ignore)));
        check("a/.wh.", Err(NameFlaw::EmptyWhiteout));
        check("a/.wh...", Err(NameFlaw::EmptyWhiteout));
        check("a/b.wh.c", Ok((&["a"], Request::Put("b.wh.c"))));
    }

    #[test]
    fn names_that_no_layer_has_are_refused() {
        check("../x", Err(NameFlaw::ParentComponent));
        check("a/../x", Err(NameFlaw::ParentComponent));
        check("a\0b", Err(NameFlaw::Nul));
        check(&"n".repeat(256), Err(NameFlaw::ComponentTooLong { bytes: 256 }));
        check(&"n/".repeat(257), Err(NameFlaw::TooDeep { components: 257 }));
        check(&"n".repeat(4097), Err(NameFlaw::TooLong { bytes: 4097 }));
        assert_eq!(parse_name(b"a\xff"), Err(NameFlaw::NotUtf8));
    }
}
