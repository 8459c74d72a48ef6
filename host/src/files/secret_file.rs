// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Reads a file of secrets if only its owner has access.

use std::{
    fs::OpenOptions,
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use secrecy::SecretString;

/// Read, write and execute permissions of the group and of others.
const OTHERS: u32 = 0o077;

/// Reads the text of a file that belongs to the server's user or to root.
///
/// # Errors
/// [`SecretFileFault`], which never shows the file's content.
pub(crate) fn read(path: &Path, bytes_max: u64) -> Result<SecretString, SecretFileFault> {
    // Without this flag, opening a pipe would wait for a writer.
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

/// A file of secrets could not be read, or other users have access to it.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileFault {
    /// The file does not exist, or its permissions exclude the server.
    #[error("failed to open the file; it must belong to the server's user and have mode 0600")]
    Open { source: io::Error },
    /// The path is a folder, a pipe or a device.
    #[error("the file must be a regular file")]
    NotAFile,
    /// Other users could read or change the file.
    #[error("the file has mode {mode:04o} and user {owner}; it must belong to the server's user and have mode 0600")]
    Exposed { mode: u32, owner: u32 },
    /// The file is too large for a file of secrets, so it is probably the wrong file.
    #[error("the file must have at most {bytes_max} bytes")]
    TooLarge { bytes_max: u64 },
    /// The disk failed, or the content is not UTF-8.
    #[error("failed to read the file as UTF-8 text")]
    Read { source: io::Error },
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use secrecy::ExposeSecret as _;

    use super::*;

    const BYTES_MAX: u64 = 64;

    #[test]
    fn secret_file_must_be_private_to_its_owner() {
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
    fn secret_file_must_be_a_small_text_file() {
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
            (
                folder.path().join("absent"),
                "failed to open the file; it must belong to the server's user and have mode 0600",
            ),
            (folder.path().to_owned(), "the file must be a regular file"),
            (pipe, "the file must be a regular file"),
            (file("large", &[b'#'; 65]), "the file must have at most 64 bytes"),
            (file("binary", &[b'h', 0xff]), "failed to read the file as UTF-8 text"),
        ] {
            assert_eq!(read(&path, BYTES_MAX).unwrap_err().to_string(), expected, "{}", path.display());
        }
    }
}
