// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Reads the file with the URL of the guests' proxy.

use std::path::{Path, PathBuf};

use secrecy::ExposeSecret as _;

use super::{Proxy, ProxyUrlFault};
use crate::files::secret_file::{self, SecretFileFault};

/// Maximum size of the file in bytes. A URL with a user, a password and a host is always shorter.
const FILE_BYTES_MAX: u64 = 8 * 1024;

/// Reads the URL in a file, which may end in a newline.
///
/// # Errors
/// [`ProxyFileFault`] names the file and never shows its content.
pub fn read(path: &Path) -> Result<Proxy, ProxyFileFault> {
    let text = secret_file::read(path, FILE_BYTES_MAX);
    let text = text.map_err(|source| ProxyFileFault::Read { path: path.to_owned(), source })?;
    let url = text.expose_secret().trim_end_matches(['\r', '\n']);
    url.parse().map_err(|source| ProxyFileFault::Content { path: path.to_owned(), source })
}

/// The proxy's file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ProxyFileFault {
    /// The file is unreadable, or readable by other users.
    #[error("failed to read the URL of the egress proxy in {}", path.display())]
    Read { path: PathBuf, source: SecretFileFault },
    #[error("invalid URL of the egress proxy in {}", path.display())]
    Content { path: PathBuf, source: ProxyUrlFault },
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn file_contains_one_url_and_may_end_in_a_newline() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("proxy");
        for (content, valid) in [
            ("http://bee:honey@h:3128", true),
            ("http://bee:honey@h:3128\n", true),
            ("http://bee:honey@h:3128\r\n", true),
            ("http://bee:honey@h:3128\nhttp://bee:honey@i:3128\n", false),
            (" http://bee:honey@h:3128", false),
            ("\n", false),
        ] {
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
            match read(&path) {
                Ok(_) => assert!(valid, "{content:?}"),
                Err(fault) => assert!(!valid && !format!("{fault:?}").contains("honey"), "{content:?}: {fault:?}"),
            }
        }
    }
}
