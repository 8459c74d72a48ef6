// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Reads the file of bearer tokens.

use std::path::{Path, PathBuf};

use secrecy::ExposeSecret as _;

use super::secret_file::{self, SecretFileFault};
use crate::domain::tokens::{Tokens, TokensFault};

/// A thousand long tokens fit; a larger file is another one that was named by mistake.
const FILE_BYTES_MAX: u64 = 2 * 1024 * 1024;

/// Reads a list of tokens from a file of the server's own user, or of root.
///
/// # Errors
/// [`TokenFileFault`] names the file, and shows nothing of what is in it.
pub fn read(path: &Path) -> Result<Tokens, TokenFileFault> {
    let text = secret_file::read(path, FILE_BYTES_MAX);
    let text = text.map_err(|source| TokenFileFault::Read { path: path.to_owned(), source })?;
    Tokens::parse(text.expose_secret()).map_err(|source| TokenFileFault::Content { path: path.to_owned(), source })
}

/// The tokens cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileFault {
    /// The file cannot be read, or others could read or change it.
    #[error("failed to read the tokens in {}, a file with a line NAME TOKEN for each caller", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: SecretFileFault,
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
