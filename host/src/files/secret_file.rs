// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Reads a file of secrets, if only its owner can.

use std::{
    fs::OpenOptions,
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use secrecy::SecretString;

/// Read, write and execute permission of everyone but the owner.
const OTHERS: u32 = 0o077;

/// Reads the text of a file that belongs to the server's user or to root.
///
/// # Errors
/// [`SecretFileFault`] shows nothing of what the file holds.
pub(crate) fn read(path: &Path, bytes_max: u64) -> Result<SecretString, SecretFileFault> {
    // Opening a pipe must not wait for a writer.
    let flags = nix::fcntl::OFlag::O_NONBLOCK.bits();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = file.map_err(|source| SecretFileFault::Open { source })?;
    let metadata = file.metadata().map_err(|source| SecretFileFault::Open { source })?;
    if !metadata.is_file() {
        return Err(SecretFileFault::NotAFile);
    }
    let own = nix::unistd::geteuid().as_raw();
    if metadata.mode() & OTHERS != 0 || ![own, 0].contains(&metadata.uid()) {
        return Err(SecretFileFault::Exposed { mode: metadata.mode() & 0o7777, owner: metadata.uid() });
    }
    let mut text = String::new();
    let read = file.take(bytes_max + 1).read_to_string(&mut text);
    let text = SecretString::from(text);
    match read {
        Ok(bytes) if bytes as u64 > bytes_max => Err(SecretFileFault::TooLarge { bytes_max }),
        Ok(_) => Ok(text),
        Err(source) => Err(SecretFileFault::Read { source }),
    }
}

/// A file of secrets cannot be read, or cannot be trusted.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileFault {
    /// It is absent, or its permissions exclude the server.
    #[error("failed to open it; it must be a file of the server's user with mode 0600")]
    Open {
        /// The system's error.
        source: io::Error,
    },
    /// A folder, a pipe or a device.
    #[error("it must be a regular file")]
    NotAFile,
    /// Other users could read or change it.
    #[error(
        "its mode is {mode:04o} and its owner is user {owner}; it must be a file of the server's user with mode 0600"
    )]
    Exposed {
        /// The file's permissions.
        mode: u32,
        /// The owner's id.
        owner: u32,
    },
    /// Larger than any file of this kind; another one was named by mistake.
    #[error("it must have at most {bytes_max} bytes")]
    TooLarge {
        /// The limit.
        bytes_max: u64,
    },
    /// The disk failed, or the content is not UTF-8.
    #[error("failed to read it as text")]
    Read {
        /// The system's error.
        source: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use secrecy::ExposeSecret as _;

    use super::*;

    const BYTES_MAX: u64 = 64;

    #[test]
    fn a_secret_file_must_be_its_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        fs::write(&path, "honey\n").unwrap();
        for (mode, trusted) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false), (0o620, false)] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            match read(&path, BYTES_MAX) {
                Ok(text) => assert_eq!((text.expose_secret(), trusted), ("honey\n", true), "{mode:o}"),
                Err(SecretFileFault::Exposed { mode: found, .. }) => assert_eq!((found, trusted), (mode, false)),
                Err(other) => panic!("{other}"),
            }
        }
    }

    #[test]
    fn a_secret_file_must_be_a_small_text_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &[u8]| {
            let path = folder.path().join(name);
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
            path
        };
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        for (path, expected) in [
            (folder.path().join("absent"), "failed to open it; it must be a file of the server's user with mode 0600"),
            (folder.path().to_owned(), "it must be a regular file"),
            (pipe, "it must be a regular file"),
            (file("large", &[b'#'; 65]), "it must have at most 64 bytes"),
            (file("binary", &[b'h', 0xff]), "failed to read it as text"),
        ] {
            assert_eq!(read(&path, BYTES_MAX).unwrap_err().to_string(), expected, "{}", path.display());
        }
    }
}
