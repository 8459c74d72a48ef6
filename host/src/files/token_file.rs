// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Reads the file of bearer tokens.

use std::path::{Path, PathBuf};

use secrecy::ExposeSecret as _;

use super::secret_file::{self, SecretFileFault};
use crate::domain::tokens::{Tokens, TokensFault};

/// Maximum size of the file in bytes: enough for a thousand long tokens. A larger file is probably the wrong file.
const FILE_BYTES_MAX: u64 = 2 * 1024 * 1024;

/// Reads the tokens in a file that belongs to the server's user or to root.
///
/// # Errors
/// [`TokenFileFault`], which names the file and never shows the file's content.
pub fn read(path: &Path) -> Result<Tokens, TokenFileFault> {
    let text = secret_file::read(path, FILE_BYTES_MAX);
    let text = text.map_err(|source| TokenFileFault::Read { path: path.to_owned(), source })?;
    Tokens::parse(text.expose_secret()).map_err(|source| TokenFileFault::Content { path: path.to_owned(), source })
}

#[derive(Debug, thiserror::Error)]
pub enum TokenFileFault {
    /// The file is unreadable, or other users have access to it.
    #[error("failed to read the tokens in {}; the file must have a line NAME TOKEN for each caller", path.display())]
    Read { path: PathBuf, source: SecretFileFault },
    #[error("invalid tokens in {}", path.display())]
    Content { path: PathBuf, source: TokensFault },
}
