// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Reads the file of bearer tokens, if nobody but its owner can.

use std::{
    fs::OpenOptions,
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use crate::domain::tokens::{Tokens, TokensFault};

/// A thousand long tokens fit; a larger file is another one that was named by mistake.
const FILE_BYTES_MAX: u64 = 2 * 1024 * 1024;

/// Read, write, execute for anybody but the owner.
const OTHERS: u32 = 0o077;

/// Reads a list of tokens from a file of the server's own user, or of root.
///
/// # Errors
/// [`TokenFileFault`] names the file, and shows nothing of what is in it.
pub fn read(path: &Path) -> Result<Tokens, TokenFileFault> {
    let fault = |source| TokenFileFault::Read { path: path.to_owned(), source };
    // Opening a pipe must not wait for a writer.
    let flags = nix::fcntl::OFlag::O_NONBLOCK.bits();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(fault)?;
    let metadata = file.metadata().map_err(fault)?;
    if !metadata.is_file() {
        return Err(fault(io::Error::other("it is not a regular file")));
    }
    let own = nix::unistd::geteuid().as_raw();
    if metadata.mode() & OTHERS != 0 || ![own, 0].contains(&metadata.uid()) {
        return Err(TokenFileFault::Open { path: path.to_owned(), mode: metadata.mode() & 0o7777 });
    }
    let mut text = String::new();
    let read = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(fault)?;
    if read as u64 > FILE_BYTES_MAX {
        return Err(fault(io::Error::other(format!("it is larger than {FILE_BYTES_MAX} bytes"))));
    }
    Tokens::parse(&text).map_err(|source| TokenFileFault::Content { path: path.to_owned(), source })
}

/// What would be right in place of a file that cannot be read.
fn remedy(fault: &io::Error) -> &'static str {
    if fault.kind() == io::ErrorKind::PermissionDenied {
        "which has to be a file of the server's user, with mode 0600"
    } else {
        "which has to be a file with a line NAME TOKEN for each caller"
    }
}

/// The tokens cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileFault {
    /// The file cannot be read.
    #[error("failed to read the tokens in {}, {}", path.display(), remedy(source))]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Others could read the tokens, or change whom they stand for.
    #[error(
        "failed to trust the tokens in {}, whose mode is {mode:04o}: make it a file of the server's user with mode 0600",
        path.display()
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It holds something else.
    #[error("failed to read the tokens in {}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: TokensFault,
    },
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn only_a_file_that_nobody_else_can_read_is_trusted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        fs::write(&path, "ada ada-has-this-token-1\n").unwrap();
        for (mode, trusted) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false), (0o620, false)] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            match read(&path) {
                Ok(_) => assert!(trusted, "{mode:o}"),
                Err(TokenFileFault::Open { mode: found, .. }) => assert_eq!((found, trusted), (mode, false)),
                Err(other) => panic!("{other}"),
            }
        }
    }

    #[test]
    fn what_is_no_such_file_is_refused_by_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let large = folder.path().join("large");
        fs::write(&large, vec![b'#'; usize::try_from(FILE_BYTES_MAX).unwrap() + 1]).unwrap();
        fs::set_permissions(&large, Permissions::from_mode(0o600)).unwrap();
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        for path in [folder.path().join("absent"), folder.path().to_owned(), large, pipe] {
            let fault = read(&path).unwrap_err();
            assert!(matches!(fault, TokenFileFault::Read { .. }), "{fault}");
            assert!(fault.to_string().contains(path.to_str().unwrap()));
        }
    }
}
