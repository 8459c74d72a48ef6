// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Finds the programs that waggle may use. Only checks the file system, and runs nothing.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use waggle_protocol::handshake::PROGRAMS;

/// Returns the names in [`PROGRAMS`] for which one of the folders contains an executable file.
pub(crate) fn programs(search_path: &[PathBuf]) -> Vec<String> {
    let is_program =
        |path: &Path| fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
    let found = |name: &&&str| search_path.iter().any(|folder| is_program(&folder.join(name)));
    PROGRAMS.iter().filter(found).map(|name| (*name).to_owned()).collect()
}
