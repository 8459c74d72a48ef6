// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The roles in which the server starts this binary as a child process, each a word after the subcommand `runner`.

use std::{
    ffi::OsStr,
    process::{self, Stdio},
};

use tokio::process::Command;

/// The subcommand that makes this binary a runner; its role follows.
pub(super) const SUBCOMMAND: &str = "runner";
/// Runs a machine.
pub(super) const MACHINE: &str = "machine";
/// Reports whether KVM runs guests.
pub(super) const PROBE: &str = "probe";
/// Reports whether machines can have namespaces of their own.
pub(super) const CONFINEMENT: &str = "confinement";
/// Reports whether a file is a usable libkrunfw; its path follows.
pub(super) const FIRMWARE: &str = "firmware";

/// Starts `runner`, which is this binary, in a role, with an empty environment.
pub(super) fn command(runner: &OsStr, role: &str) -> process::Command {
    let mut command = process::Command::new(runner);
    command.args([SUBCOMMAND, role]).env_clear();
    command
}

/// The command of a child process that only reports something: killed on drop, and without input.
pub(super) fn check_command(runner: &OsStr, role: &str) -> Command {
    let mut command = Command::from(command(runner, role));
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}
