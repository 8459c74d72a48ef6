// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Paths inside a guest, checked against the rules that hold in every guest.
//!
//! This module does not resolve paths. The guest resolves a path and its links with the rights of the sandbox user, so
//! a path only reaches files that the sandbox user may access.

use std::fmt;

use super::file::NAME_TEXT_BYTES_MAX;

/// The home of the user that runs a client's code in every guest.
pub const SANDBOX_HOME: &str = "/home/sandbox";

/// Maximum bytes of a path. The guest's kernel enforces its own limit, which is one byte lower (`PATH_MAX` counts the
/// final NUL).
pub const GUEST_PATH_BYTES_MAX: usize = 4096;

/// The start of an escaped byte in the text of a path that is not UTF-8. The text of such a byte has four bytes.
const ESCAPE: &str = "\\x";

/// A path, absolute or relative to the sandbox user's home. It is not empty, contains no NUL and has at most
/// [`GUEST_PATH_BYTES_MAX`] bytes, where an escaped byte counts as one.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct GuestPath(String);

impl GuestPath {
    /// Checks a path that a client sent.
    ///
    /// # Errors
    /// [`GuestPathFault`] names the broken rule.
    pub fn parse(path: impl Into<String>) -> Result<Self, GuestPathFault> {
        let path = path.into();
        if path.is_empty() {
            return Err(GuestPathFault::Empty);
        }
        let unescaped_bytes = path.len().saturating_sub(3 * path.matches(ESCAPE).count());
        if unescaped_bytes > GUEST_PATH_BYTES_MAX || path.len() > NAME_TEXT_BYTES_MAX {
            return Err(GuestPathFault::TooLong { bytes: path.len() });
        }
        match path.find('\0') {
            Some(position) => Err(GuestPathFault::Nul { position }),
            None => Ok(Self(path)),
        }
    }

    /// Returns the sandbox user's home.
    #[must_use]
    pub fn home() -> Self {
        Self(SANDBOX_HOME.to_owned())
    }

    /// Returns the path as the client wrote it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for GuestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a path is invalid.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum GuestPathFault {
    #[error("must not be empty; must be absolute, or relative to /home/sandbox")]
    Empty,
    #[error("{bytes} bytes are too many; must be at most {GUEST_PATH_BYTES_MAX}, where an escaped byte counts as one")]
    TooLong { bytes: usize },
    #[error("must not contain NUL characters; the first is at byte {position}")]
    Nul {
        /// Byte offset of the first NUL.
        position: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_absolute_and_relative_paths_as_written() {
        for path in ["/etc/passwd", "data.csv", "./a/../b", "~", "/home/sandbox/ä b\nc"] {
            assert_eq!(GuestPath::parse(path).unwrap().as_str(), path);
        }
    }

    #[test]
    fn rejects_invalid_paths() {
        assert_eq!(GuestPath::parse(""), Err(GuestPathFault::Empty));
        assert_eq!(GuestPath::parse("a\0b"), Err(GuestPathFault::Nul { position: 1 }));
        assert_eq!(GuestPath::parse("x".repeat(4097)), Err(GuestPathFault::TooLong { bytes: 4097 }));
        assert_eq!(GuestPath::parse("x".repeat(4096)).unwrap().as_str().len(), 4096);
    }

    #[test]
    fn escaped_byte_counts_as_one() {
        let path = format!("{}/{}", "\\xE9".repeat(4090), "x".repeat(5));
        assert_eq!(GuestPath::parse(path.clone()).unwrap().as_str(), path);
        assert_eq!(GuestPath::parse(path + "x"), Err(GuestPathFault::TooLong { bytes: 16_367 }));
        assert_eq!(GuestPath::parse("\\x".repeat(8192)).unwrap().as_str().len(), 16_384);
        assert_eq!(GuestPath::parse("\\x".repeat(8193)), Err(GuestPathFault::TooLong { bytes: 16_386 }));
    }
}
