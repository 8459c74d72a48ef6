// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Completion scripts and manual pages, generated from the command line.

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

use clap::Command;
use clap_complete::Shell;

/// Writes a completion script for a shell.
pub(super) fn complete(mut command: Command, shell: Shell, out: &mut impl Write) -> io::Result<()> {
    let name = command.get_name().to_owned();
    // The generator panics if it cannot write, for example into a closed pipe.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    out.write_all(&script)
}

/// Writes a manual page for the program and one for each command into a folder.
pub(super) fn write_pages(command: Command, folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    clap_mangen::generate_to(command, folder)
}
