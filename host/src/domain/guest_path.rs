// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! A path inside a guest, checked for what no guest could mean.
//!
//! It is not resolved here: what a name stands for, links included, is decided in the guest with the sandbox user's
//! rights, so a path can reach nothing but that user's own view.

use std::fmt;

use super::runtime::SANDBOX_HOME;

/// Linux's `PATH_MAX` without its final NUL would be 4095; the kernel is asked in the end, so the rounder number
/// serves.
pub const GUEST_PATH_BYTES_MAX: usize = 4096;

/// Absolute, or relative to the sandbox user's home. Not empty, no NUL, at most [`GUEST_PATH_BYTES_MAX`] bytes.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct GuestPath(String);

impl GuestPath {
    /// Checks a path that a client sent.
    ///
    /// # Errors
    /// [`GuestPathFault`] says which rule it breaks.
    pub fn parse(path: impl Into<String>) -> Result<Self, GuestPathFault> {
        let path = path.into();
        if path.is_empty() {
            return Err(GuestPathFault::Empty);
        }
        if path.len() > GUEST_PATH_BYTES_MAX {
            return Err(GuestPathFault::TooLong { bytes: path.len() });
        }
        match path.find('\0') {
            Some(position) => Err(GuestPathFault::Nul { position }),
            None => Ok(Self(path)),
        }
    }

    /// The sandbox user's home.
    #[must_use]
    pub fn home() -> Self {
        Self(SANDBOX_HOME.to_owned())
    }

    /// As the client wrote it.
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

/// Why a path is none.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum GuestPathFault {
    /// Nothing was given.
    #[error("the path is empty; give an absolute one, or one relative to /home/sandbox")]
    Empty,
    /// Longer than the limit.
    #[error("the path has {bytes} bytes; at most {GUEST_PATH_BYTES_MAX} are allowed")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// No file name can hold a NUL.
    #[error("the path holds a NUL character at byte {position}; no file name can")]
    Nul {
        /// Byte offset of the first.
        position: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absolute_and_relative_paths_are_kept_as_written() {
        for path in ["/etc/passwd", "data.csv", "./a/../b", "~", "/home/sandbox/ä b\nc"] {
            assert_eq!(GuestPath::parse(path).unwrap().as_str(), path);
        }
    }

    #[test]
    fn a_path_that_nothing_can_have_is_refused_with_its_reason() {
        assert_eq!(GuestPath::parse(""), Err(GuestPathFault::Empty));
        assert_eq!(GuestPath::parse("a\0b"), Err(GuestPathFault::Nul { position: 1 }));
        assert_eq!(GuestPath::parse("x".repeat(4097)), Err(GuestPathFault::TooLong { bytes: 4097 }));
        assert_eq!(GuestPath::parse("x".repeat(4096)).unwrap().as_str().len(), 4096);
    }
}
