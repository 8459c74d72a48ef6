// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Looks for the programs that waggle may use. It asks the file system alone: nothing is run.

use std::{fs, os::unix::fs::PermissionsExt};

use waggle_protocol::handshake::PROGRAMS;

use crate::guest::Served;

/// The names of those of [`PROGRAMS`] that are on the guest's search path.
pub(crate) fn programs(served: &Served) -> Vec<String> {
    let folders: Vec<_> = served.search_path().collect();
    let found = |name: &str| {
        folders.iter().any(|folder| {
            fs::metadata(folder.join(name)).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        })
    };
    PROGRAMS.iter().filter(|name| found(name)).map(|name| (*name).to_owned()).collect()
}
